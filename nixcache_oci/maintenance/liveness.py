"""Which roots, pins and records count. Pure; source: design section 5, promise 1."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record, UnknownRecord, UnpinRecord
from nixcache_oci.maintenance.pins import count_pins
from nixcache_oci.maintenance.roots import count_roots
from nixcache_oci.nix.store_path import StorePath


@dataclass(frozen=True, slots=True)
class Counting:
    """What counts at a moment.

    Attributes:
        roots: store paths of roots and pins.
        records: those that have to stay; among them all of a kind that is not known here.
    """

    roots: frozenset[StorePath]
    records: frozenset[Record]


def count(
    records: Iterable[Record], now: datetime, *, retention: timedelta, scope_ttl: timedelta | None
) -> Counting:
    """Decide which roots and pins count; the arguments are those of ``count_roots``."""
    unique = frozenset(records)
    roots = count_roots(
        (one for one in unique if isinstance(one, PublishRecord)),
        now,
        retention=retention,
        scope_ttl=scope_ttl,
    )
    pins = count_pins((one for one in unique if isinstance(one, PinRecord | UnpinRecord)), now)
    unknown = {one for one in unique if isinstance(one, UnknownRecord)}
    return Counting(roots.paths | {pin.path for pin in pins.pins}, roots.records | pins.records | unknown)

"""Liveness: what the counting roots and pins reach. Pure; source: design section 5, promise 1."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record, UnknownRecord, UnpinRecord
from nixcache_oci.maintenance.pins import count_pins
from nixcache_oci.maintenance.roots import count_roots
from nixcache_oci.nix.store_path import HashPart, StorePath


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


def reach(
    starts: Iterable[HashPart], references: Mapping[HashPart, Iterable[HashPart]]
) -> AbstractSet[HashPart]:
    """Walk from the starts; what is not in ``references`` is an upstream's, and the walk ends there.

    Returns:
        What was reached and is in ``references``.
    """
    found: set[HashPart] = set()
    waiting = [start for start in starts if start in references]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += (other for other in references[one] if other in references and other not in found)
    return found

"""What keeps store paths in a cache: roots, which publishes record, and pins.

A pin counts until its date, or forever, or until as many other paths were pinned under its name as it has
revisions; or until its name is unpinned. Source: design section 5, promise 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import PinRecord, PublishRecord, Record, UnpinRecord
from nixcache_oci.cache.timestamp import parse_time
from nixcache_oci.nix.store_path import StorePath

PinningRecord = PinRecord | UnpinRecord


@dataclass(frozen=True, slots=True)
class Root:
    """What the publishes of one scope say of one name.

    Attributes:
        scope: that it belongs to.
        name: of the output.
        paths: of the last good build, one per output.
        built: when that was published, or None.
        failed: when it last failed, if later.
    """

    scope: str
    name: str
    paths: tuple[StorePath, ...]
    built: datetime | None
    failed: datetime | None


@dataclass(frozen=True, slots=True)
class Keepers:
    """What keeps store paths in a cache: the newest roots, and pins; whole if no record was unreadable."""

    roots: list[Root]
    pins: list[PinRecord]
    is_whole: bool

    @classmethod
    def of(cls, records: Sequence[Record], moment: Moment, *, is_whole: bool) -> Self:
        """Find what the records of a cache say at a time."""
        pinning = (one for one in records if isinstance(one, (PinRecord, UnpinRecord)))
        return cls(newest_roots(records), counting_pins(pinning, moment), is_whole)


def newest_roots(records: Iterable[Record]) -> list[Root]:
    """Return the newest state of each root, by scope and name."""
    publishes = sorted(
        (record for record in records if isinstance(record, PublishRecord)),
        key=lambda record: record.time,
    )
    found: dict[tuple[str, str], Root] = {}
    for record in publishes:
        built: defaultdict[str, list[StorePath]] = defaultdict(list)
        for name, path in record.roots:
            built[name].append(path)
        for name, of_name in built.items():
            found[record.scope, name] = Root(record.scope, name, tuple(of_name), record.time, None)
        for name in record.failed:
            before = found.get((record.scope, name))
            paths, time = (before.paths, before.built) if before is not None else ((), None)
            found[record.scope, name] = Root(record.scope, name, paths, time, record.time)
    return [found[key] for key in sorted(found)]


def counting_pins(records: Iterable[PinningRecord], moment: Moment) -> list[PinRecord]:
    """List the pins that count, by name."""
    return sorted(count_pins(records, moment).pins, key=lambda pin: (pin.name, pin.time, pin.path))


@dataclass(frozen=True, slots=True)
class CountedPins:
    """Which pins count at one time."""

    pins: frozenset[PinRecord]  # that count
    records: frozenset[PinningRecord]  # that later decisions depend on; the others may be dropped


def count_pins(records: Iterable[PinningRecord], moment: Moment) -> CountedPins:
    """Decide which pins count; duplicates count once."""
    by_name: defaultdict[str, set[PinningRecord]] = defaultdict(set)
    for record in records:
        by_name[record.name].add(record)
    pins: set[PinRecord] = set()
    kept: set[PinningRecord] = set()
    for members in by_name.values():
        made = [record for record in members if isinstance(record, PinRecord)]
        counting = {record for record in made if _counts(record, members, moment)}
        pins |= counting
        kept |= counting
        # Records after the oldest pin may end or displace it, so they stay: it must not count again.
        if made:
            oldest = min(record.time for record in made)
            kept |= {record for record in members if record.time > oldest}
        else:
            kept |= {record for record in members if not moment.is_past(record.time)}
    return CountedPins(frozenset(pins), frozenset(kept))


def _counts(pin: PinRecord, members: Iterable[PinningRecord], moment: Moment) -> bool:
    later = [record for record in members if record.time > pin.time]
    if any(isinstance(record, UnpinRecord) for record in later):
        return False
    match pin.keep.split(" "):
        case ["until", time]:
            return not moment.is_past(parse_time(time))
        case ["for", revisions, _]:
            others = {record.path for record in later if isinstance(record, PinRecord)} - {pin.path}
            return len(others) < int(revisions)
    return True

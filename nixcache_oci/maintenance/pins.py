"""Decides which recorded pins still count, and which records gc has to keep for that.

A pin counts until its date, or forever, or until as many other paths were pinned under its name as it has
revisions; or until its name is unpinned. Source: design section 5, promise 1.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from nixcache_oci.cache.record import PinRecord, UnpinRecord
from nixcache_oci.cache.timestamp import parse_time

PinningRecord = PinRecord | UnpinRecord


@dataclass(frozen=True, slots=True)
class CountedPins:
    """What counts at one time.

    Attributes:
        pins: that count.
        records: that later decisions depend on; the others may be dropped.
    """

    pins: frozenset[PinRecord]
    records: frozenset[PinningRecord]


def count_pins(records: Iterable[PinningRecord], now: datetime) -> CountedPins:
    """Decide which pins count.

    Args:
        records: all in the cache, in any order; duplicates count once.
        now: the time of the decision.
    """
    by_name: defaultdict[str, set[PinningRecord]] = defaultdict(set)
    for record in records:
        by_name[record.name].add(record)
    pins: set[PinRecord] = set()
    kept: set[PinningRecord] = set()
    for members in by_name.values():
        made = [record for record in members if isinstance(record, PinRecord)]
        counting = {record for record in made if _counts(record, members, now)}
        pins |= counting
        # Records after the oldest pin may end or displace it, so they stay: it must not count again.
        oldest = min((record.time for record in made), default=now)
        kept |= counting | {record for record in members if record.time > oldest}
    return CountedPins(frozenset(pins), frozenset(kept))


def _counts(pin: PinRecord, members: Iterable[PinningRecord], now: datetime) -> bool:
    later = [record for record in members if record.time > pin.time]
    if any(isinstance(record, UnpinRecord) for record in later):
        return False
    match pin.keep.split(" "):
        case ["until", time]:
            return now < parse_time(time)
        case ["for", revisions, _]:
            others = {record.path for record in later if isinstance(record, PinRecord)} - {pin.path}
            return len(others) < int(revisions)
    return True

"""Decides which recorded roots and pins still count, and which records gc has to keep for that.

A **run** is all publish records of one scope and run id. A root is superseded when a later run builds its
name, or when a later whole run neither builds it nor lists it as failed; it counts for some time after that.
A run never displaces what was published after it began, so that a slow job, or a restarted old run, does not
displace a newer one's roots. When in doubt, a root counts.

Source: design section 5, promise 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from nixcache_oci.cache.keepers import count_pins
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import (
    PUSH_SCOPE_START,
    UNRECORDED,
    PinRecord,
    PublishRecord,
    Record,
    UnknownRecord,
    UnpinRecord,
)
from nixcache_oci.nix.store_path import StorePath

RecordT = TypeVar("RecordT", PublishRecord, Record)


@dataclass(frozen=True, slots=True)
class Counting(Generic[RecordT]):
    """Which paths count at one time."""

    paths: frozenset[StorePath]  # of roots and pins
    records: frozenset[RecordT]  # that later decisions depend on; the others may be dropped


def count_roots(
    records: Iterable[PublishRecord], moment: Moment, *, retention: timedelta, scope_ttl: timedelta | None
) -> Counting[PublishRecord]:
    """Decide which roots count; duplicates count once.

    A root counts for ``retention`` after it was superseded; a scope's roots for ``scope_ttl`` after its last
    publish, or forever. ``UNRECORDED`` is added, because the last publish may have left no record.
    """
    by_scope: defaultdict[str, set[PublishRecord]] = defaultdict(set)
    for record in records:
        by_scope[record.scope].add(record)
    paths: set[StorePath] = set()
    kept: set[PublishRecord] = set()
    for members in by_scope.values():
        last_publish = max(record.time for record in members)
        if scope_ttl is not None and moment.is_past(last_publish, scope_ttl + UNRECORDED):
            continue
        scope = _Scope(members)
        counting = scope.counting(moment, retention)
        paths |= {path for record, name in counting for root, path in record.roots if root == name}
        kept |= scope.needed({record for record, _ in counting})
    return Counting(frozenset(paths), frozenset(kept))


class _Run:
    """All records of one scope and run id."""

    def __init__(self, records: Iterable[PublishRecord]) -> None:
        self.records = tuple(records)
        self.first = min(record.time for record in self.records)
        self.last = max(record.time for record in self.records)
        self.failed = {name for record in self.records for name in record.failed}
        self.built = {name for record in self.records for name, _ in record.roots}
        self.is_whole = any(
            not record.is_partial and not record.scope.startswith(PUSH_SCOPE_START) for record in self.records
        )

    def displaces(self, name: str) -> bool:
        """Tell whether this run removes the name."""
        return self.is_whole and name not in self.built and name not in self.failed


class _Scope:
    """All runs of one scope."""

    def __init__(self, records: Iterable[PublishRecord]) -> None:
        by_run: defaultdict[str, list[PublishRecord]] = defaultdict(list)
        for record in records:
            by_run[record.run].append(record)
        self._runs = sorted(
            (_Run(members) for members in by_run.values()), key=lambda run: (run.last, run.records[0].run)
        )
        self._builders: defaultdict[str, list[PublishRecord]] = defaultdict(list)
        for run in self._runs:
            for record in run.records:
                for name in {name for name, _ in record.roots}:
                    self._builders[name].append(record)

    def counting(self, moment: Moment, retention: timedelta) -> list[tuple[PublishRecord, str]]:
        """Find the roots, as record and name, that were superseded within the retention, or not at all."""
        found = []
        for name, builders in self._builders.items():
            for record in builders:
                superseded = self._superseded(record, name, builders)
                if superseded is None or not moment.is_past(superseded, retention):
                    found.append((record, name))
        return found

    def needed(self, counting: set[PublishRecord]) -> set[PublishRecord]:
        """Find the records to keep so that every later decision is the same.

        They are the records with a counting root, the newest run, which says when the scope was last
        published to, the newest whole run, which says what is gone, and everything after any of these.
        """
        newest_whole = next((run for run in reversed(self._runs) if run.is_whole), self._runs[-1])
        since = min(newest_whole.first, self._runs[-1].first, *(record.time for record in counting))
        needed: set[PublishRecord] = set()
        for run in reversed(self._runs):
            if run.last < since:
                break
            since = min(since, run.first)  # records in between decide about this run's
            needed.update(run.records)
        return needed

    def _superseded(
        self, record: PublishRecord, name: str, builders: Sequence[PublishRecord]
    ) -> datetime | None:
        built_again = min(
            (one.time for one in builders if one.run != record.run and one.time > record.time), default=None
        )
        gone: datetime | None = None
        for run in self._runs:
            if built_again is not None and run.last >= built_again:
                break
            if run.last <= record.time:
                continue
            if name in run.failed and name not in run.built:
                gone = None  # its last good one keeps counting
            elif gone is None and run.first > record.time and run.displaces(name):
                gone = run.last
        return gone or built_again


def count(
    records: Iterable[Record], moment: Moment, *, retention: timedelta, scope_ttl: timedelta | None
) -> Counting[Record]:
    """Decide which roots and pins count; see ``count_roots``. Records of an unknown kind are kept."""
    unique = frozenset(records)
    roots = count_roots(
        (one for one in unique if isinstance(one, PublishRecord)),
        moment,
        retention=retention,
        scope_ttl=scope_ttl,
    )
    pins = count_pins((one for one in unique if isinstance(one, PinRecord | UnpinRecord)), moment)
    unknown = {one for one in unique if isinstance(one, UnknownRecord)}
    return Counting(roots.paths | {pin.path for pin in pins.pins}, roots.records | pins.records | unknown)

"""What publishes and pins recorded, read for the page: only when it is asked for, and within a bound."""

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from weakref import WeakKeyDictionary

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.keepers import Keepers
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import PublishRecord, Record
from nixcache_oci.cache.timestamp import EPOCH, now
from nixcache_oci.errors import FormatError
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.page.jobs import PageJobs

MOST_RECORDED: Final = 20_000
"""Roots and failures that are read of one cache, the newest tables' first."""

# Deciding which pins of one name count takes time that grows with the square of their number.
_PIN_COST: Final = 20

MOST_CACHES: Final = 4
"""Caches whose records are kept in memory."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read, of the index of which time, and in which minute."""

    changed_at: float | None
    minute: int
    keepers: Keepers


class RecordedKeepers:
    """Reads the keepers of caches, anew where the index changed, or a minute is over: pins end."""

    def __init__(self, jobs: PageJobs) -> None:
        self._jobs = jobs
        self._read: WeakKeyDictionary[OpenedCache, _Read] = WeakKeyDictionary()

    async def of(self, cache: OpenedCache, catalog: Catalog) -> Keepers:
        """Return what keeps the paths of a cache: the roots that were built last come first."""
        moment, changed_at = now(), cache.index.state.changed_at
        minute = int(moment.timestamp()) // 60
        known = self._read.pop(cache, None)
        if known is None or (known.changed_at, known.minute) != (changed_at, minute):
            records, is_whole = await self._jobs.run(_read_records(catalog))
            keepers = await asyncio.to_thread(_order, records, moment, is_whole=is_whole)
            known = _Read(changed_at, minute, keepers)
        self._read[cache] = known
        for oldest in list(self._read)[:-MOST_CACHES]:
            self._read.pop(oldest, None)
        return known.keepers


def _read_records(catalog: Catalog) -> Generator[None, None, tuple[list[Record], bool]]:
    """Read the newest records; also returns whether these are all."""
    records: list[Record] = []
    left, is_whole = MOST_RECORDED, True
    for table in catalog.tables:
        try:
            for record in table.file.each_record():
                left -= _cost(record)
                if left < 0:
                    return records, False
                records.append(record)
                yield
        except FormatError:
            is_whole = False
        yield
    return records, is_whole


def _cost(record: Record) -> int:
    return 1 + len(record.roots) + len(record.failed) if isinstance(record, PublishRecord) else _PIN_COST


def _order(records: Sequence[Record], moment: datetime, *, is_whole: bool) -> Keepers:
    keepers = Keepers.of(records, Moment(moment), is_whole=is_whole)
    roots = sorted(keepers.roots, key=lambda root: root.built or root.failed or EPOCH, reverse=True)
    return replace(keepers, roots=roots)

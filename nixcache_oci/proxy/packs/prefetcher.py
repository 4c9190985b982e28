"""When what is wanted is prefetched: as the bound of memory, and what clients ask for, allow.

Source: design section 3, promise 9.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.packs.memory import PackEntry, PackMemory
from nixcache_oci.proxy.packs.wanted import Extent, Wanted, WantedList, ranges_of

# NARs to prefetch later; a crawl names thousands, and where it does, nothing is in transit.
_MOST_WANTED: Final = 8192
_MOST_WANTED_AT_REST: Final = 1024
# A client that reads a pack will read the others whose narinfos it has, in an unknown order.
_PREFETCH_PER_READ: Final = 2
# While clients ask for narinfos only, they name more of each pack: its first range alone is fetched, of so
# many packs at a time, until so many NARs are wanted.
_MOST_RANGES_BEFORE_NARS: Final = 4
_MOST_WANTED_BEFORE_NARS: Final = 256


class Prefetcher:
    """Prefetches ranges and blobs of one cache, as many at a time as the budget of ``memory`` allows.

    Args:
        memory: has what was downloaded.
        start: starts the download of what is wanted of a blob, or of a range of it, that has so many bytes.
        is_of_use: whether a blob may be downloaded.
        counters: for what is begun.
        clock: in seconds.
    """

    def __init__(
        self,
        memory: PackMemory,
        start: Callable[[Wanted, int, Extent | None], PackEntry],
        is_of_use: Callable[[Digest], bool],
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._start = start
        self._is_of_use = is_of_use
        self._counters = counters
        self._clock = clock
        self._wanted = WantedList()
        self._in_transit = 0
        self._ranges_in_transit = 0  # of those
        # Whether the last that clients asked for was a narinfo.
        self._more_will_be_wanted = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be added."""
        return len(self._wanted) >= (_MOST_WANTED if self._in_transit else _MOST_WANTED_AT_REST)

    def add_nar(self, blob: Digest, size_bytes: int) -> None:
        """Prefetch a NAR that has a blob of its own, which is not here."""
        if self._is_of_use(blob) and self._wanted.get(blob) is None:
            self._wanted.add(wanted := Wanted(blob, size_bytes, self._clock()))
            self._begin(wanted)

    def add_part(self, pack: Digest, part: Extent) -> None:
        """Prefetch a NAR in a pack, which is not here."""
        if not self._is_of_use(pack):
            return
        wanted = self.wanted_of(pack)
        if self._wanted.get(pack) is None:
            self._wanted.add(wanted)
        if wanted.is_pack:
            self._wanted.add_part(wanted, part)
            self._more_will_be_wanted = True
            self._begin(wanted)

    def wanted_of(self, pack: Digest) -> Wanted:
        """Return what is wanted of a pack by now, which may be nothing."""
        known = self._wanted.get(pack)
        return known or Wanted(pack, None, self._clock(), self._memory.last_batch_read(pack) + 1)

    def drop(self, blob: Digest, extent: Extent | None = None) -> None:
        """Prefetch no more of a blob, or of a range of it: it was begun, or is streamed."""
        wanted = self._wanted.get(blob)
        if wanted is not None and wanted.is_pack and extent is not None:
            self._wanted.drop_parts(wanted, extent)
        else:
            self._wanted.drop(blob)

    def drop_older(self, oldest: float) -> None:
        """Drop what is wanted since before this time."""
        self._wanted.drop_older(oldest)

    def clear(self) -> None:
        """Drop everything."""
        self._wanted.clear()

    def note_read(self, *, is_first: bool) -> None:
        """Prefetch more, because a client asked for a NAR, perhaps the first one of its download."""
        if is_first or self._more_will_be_wanted:
            self._more_will_be_wanted = False
            self.begin(_PREFETCH_PER_READ if is_first else 0)

    def begin(self, at_least: int = 0) -> None:
        """Prefetch in the order of narinfos, at least some even if much is unread."""
        if not self._memory.budget.has_turn:
            return
        for wanted in self._wanted:
            if not self._is_of_use(wanted.blob):
                self._wanted.drop(wanted.blob)
                continue
            before = self._in_transit
            if not self._begin(wanted, at_least) and not self._is_paused(wanted):
                return
            at_least = max(0, at_least - (self._in_transit - before))

    def _is_paused(self, wanted: Wanted) -> bool:
        """Check whether more of a pack will be wanted soon, so that fewer ranges have all of it."""
        are_many = wanted.is_dense or len(self._wanted) >= _MOST_WANTED_BEFORE_NARS
        if not wanted.is_pack or not self._more_will_be_wanted or are_many:
            return False
        return self._ranges_in_transit >= _MOST_RANGES_BEFORE_NARS or self._memory.has_part(wanted.blob)

    def _begin(self, wanted: Wanted, at_least: int = 0) -> bool:
        """Prefetch what is wanted of a blob; returns whether all of it has begun."""
        if wanted.is_whole:
            size = MAX_PACK_BYTES if wanted.size_bytes is None else wanted.size_bytes
            if not self._begin_one(wanted, size, None, at_least):
                return False
            self._wanted.drop(wanted.blob)
            return True
        if not self._memory.budget.has_turn or self._is_paused(wanted):
            return False  # before the ranges are made
        for start, end in ranges_of(wanted.parts):
            if not self._begin_one(wanted, end - start, (start, end), at_least):
                return False
            at_least -= 1
            self._wanted.drop_parts(wanted, (start, end))
        return True

    def _begin_one(self, wanted: Wanted, size: int, extent: Extent | None, at_least: int) -> bool:
        if not self._memory.budget.has_turn or self._is_paused(wanted):
            return False
        has_space = at_least > 0 or self._memory.has_prefetch_space(size)
        if not has_space or not self._memory.evict_for_prefetch(size):
            return False
        self._in_transit += 1
        self._memory.budget.in_transit += 1
        download = self._start(wanted, size, extent).download
        if wanted.is_pack:
            self._ranges_in_transit += 1
            self._counters.ranges_fetched_ahead += 1
            download.add_done_callback(self._end_range)
        else:
            self._counters.nars_fetched_ahead += 1
            download.add_done_callback(self._end)
        return True

    def _end_range(self, download: asyncio.Task[bytearray]) -> None:
        self._ranges_in_transit -= 1
        self._end(download)

    def _end(self, _: asyncio.Task[bytearray]) -> None:
        self._in_transit -= 1
        self._memory.budget.in_transit -= 1
        self.begin()

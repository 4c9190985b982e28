"""The memory of packs and small NARs: bounded, including those in transit, and released when unused."""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.oci.digest import Digest

UNUSED_SECONDS: Final = 120.0
"""Packs unused for this long are dropped."""

# This fraction is for prefetched packs, which a crawl or a dry run never reads.
_PREFETCH_SHARE: Final = 4
# A pack that was read so recently is not evicted for a prefetch.
_BUSY_SECONDS: Final = 2.0
# An entry takes so much besides its content: a cache may have any number of empty NARs.
_ENTRY_BYTES: Final = 4096


class Arrival:
    """A pack in transit, unverified; implements ``Receiver``.

    Readers wait for the bytes of a slice, not for the whole pack. ``when_open`` receives the size before the
    bytes arrive.
    """

    def __init__(self, when_open: Callable[[int], Awaitable[None]]) -> None:
        self._when_open = when_open
        self._content = bytearray()
        self._arrived = 0
        self._is_over = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def begin(self, content: bytearray) -> None:
        """Take the buffer for all bytes."""
        self._content = content
        await self._when_open(len(content))

    def advance(self, arrived: int) -> None:
        """Note how many bytes have arrived."""
        self._arrived = arrived
        self._wake(arrived)

    def end(self) -> None:
        """Note that no more will arrive."""
        self._is_over = True
        self._wake(max((end for end, _ in self._waiting), default=0))

    async def reach(self, end: int) -> None:
        """Wait until all bytes before ``end`` have arrived, or no more will."""
        if not self._is_over and self._arrived < end:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append((end, waiting))
            await waiting

    def view(self, start: int, end: int) -> memoryview | None:
        """Return the bytes from ``start`` to before ``end``; None if they have not arrived."""
        return memoryview(self._content)[start:end] if end <= self._arrived else None

    def _wake(self, arrived: int) -> None:
        woken = [waiting for end, waiting in self._waiting if end <= arrived]
        self._waiting = [(end, waiting) for end, waiting in self._waiting if end > arrived]
        for waiting in woken:
            if not waiting.done():
                waiting.set_result(None)


@dataclass(slots=True, eq=False)
class PackEntry:
    """A pack, a part of it, or a NAR, downloaded or in transit.

    Attributes:
        blob: the pack, or the NAR.
        start: offset of the first byte.
        end: offset after the last byte; None for a whole blob, which matches its digest once downloaded.
        is_pack: whether the blob is a pack.
        batch: which parts of a pack were wanted together.
        download: returns the content.
        arrival: unverified parts of it before.
        used_at: when it was last used, or started, in seconds of the clock.
        is_unread: whether it was not used yet.
        size_bytes: that count against the capacity: the most it may have while its size is unknown.
        verified_parts: starts and ends of those that match their own hashes.
    """

    blob: Digest
    start: int
    end: int | None
    is_pack: bool
    batch: int
    download: asyncio.Task[bytearray]
    arrival: Arrival
    used_at: float
    is_unread: bool = True
    size_bytes: int = 0
    verified_parts: set[tuple[int, int]] = field(default_factory=set)

    @property
    def is_verified(self) -> bool:
        """Whether it is whole, and has the right digest."""
        download = self.download
        return self.end is None and download.done() and not download.cancelled() and not download.exception()

    def covers(self, start: int, end: int | None) -> bool:
        """Check whether it has, or will have, the bytes from ``start`` to before ``end`` (None: all)."""
        return self.end is None or (end is not None and self.start <= start and end <= self.end)

    async def reach(self, end: int) -> None:
        """Wait until all bytes before ``end`` of the blob have arrived, or no more will."""
        await self.arrival.reach(end - self.start)

    def view(self, start: int, end: int) -> memoryview | None:
        """Return bytes of the blob, verified or not; None if they have not arrived."""
        return self.arrival.view(start - self.start, end - self.start)


class PackBudget:
    """What the packs of all caches share: memory, and how much is prefetched at a time.

    The content is not shared: who may not read a private cache could ask for its packs elsewhere.

    Args:
        capacity_bytes: of packs and prefetched NARs, including those in transit.
        most_in_transit: limit of concurrent prefetches: each takes connections.

    Attributes:
        used_bytes: that count against the capacity.
        unread_bytes: those of them that no client has read yet.
        in_transit: prefetches that run.
        space_freed: notified when more may fit.
        memories: that take part.
    """

    def __init__(self, capacity_bytes: int, most_in_transit: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.most_in_transit = most_in_transit
        self.used_bytes = 0
        self.unread_bytes = 0
        self.in_transit = 0
        self.space_freed = asyncio.Condition()
        self.memories: dict[PackMemory, None] = {}

    @property
    def has_turn(self) -> bool:
        """Whether one more prefetch may run."""
        return self.in_transit < self.most_in_transit

    def evict(self, wanted_bytes: int, is_spared: Callable[[PackEntry], bool]) -> bool:
        """Evict until so much fits, the least recently used first; else nothing, and return False."""
        missing = self.used_bytes + wanted_bytes - self.capacity_bytes
        if missing <= 0:
            return True
        dropped: list[tuple[PackMemory, PackEntry]] = []
        everything = (((memory, entry) for entry in memory.entries) for memory in self.memories)
        for memory, entry in heapq.merge(*everything, key=lambda each: each[1].used_at):
            if entry.download.done() and not is_spared(entry):
                dropped.append((memory, entry))
                missing -= entry.size_bytes
                if missing <= 0:
                    break
        if missing > 0:
            return False
        for memory, entry in dropped:
            memory.drop(entry)
        return True


class PackMemory:
    """Counts the memory of one cache's packs, and evicts packs of any; ``clock`` is monotonic.

    Attributes:
        budget: that all caches share.
        entries: all, the least recently used first.
        used_bytes: of these entries.
    """

    def __init__(self, budget: PackBudget, clock: Callable[[], float]) -> None:
        self.budget = budget
        self._clock = clock
        budget.memories[self] = None
        self.entries: OrderedDict[PackEntry, None] = OrderedDict()
        self._of_blob: dict[Digest, list[PackEntry]] = {}
        self.used_bytes = 0

    def find(self, blob: Digest, start: int = 0, end: int | None = None) -> PackEntry | None:
        """Return an entry with the bytes from ``start`` to before ``end``, by default with the whole blob."""
        for entry in self._of_blob.get(blob, ()):
            if entry.covers(start, end):
                return entry
        return None

    def has_part(self, blob: Digest) -> bool:
        """Check whether anything of a blob is here, or will be."""
        return blob in self._of_blob

    def last_batch_read(self, pack: Digest) -> int:
        """Return the number of the last batch of a pack's parts of which one here was read; 0 for none."""
        read = (entry.batch for entry in self._of_blob.get(pack, ()) if not entry.is_unread)
        return max(read, default=0)

    @property
    def has_space(self) -> bool:
        """Whether one more pack fits without evictions."""
        return self.budget.used_bytes + MAX_PACK_BYTES <= self.budget.capacity_bytes

    def has_prefetch_space(self, size_bytes: int) -> bool:
        """Check whether so much more may be prefetched."""
        return self.budget.unread_bytes + size_bytes <= self.budget.capacity_bytes // _PREFETCH_SHARE

    def add(self, entry: PackEntry, size_bytes: int) -> None:
        """Add what is being downloaded; it counts for so much until its size is known."""
        self.entries[entry] = None
        self._of_blob.setdefault(entry.blob, []).append(entry)
        self.resize(entry, size_bytes)

    def resize(self, entry: PackEntry, size_bytes: int) -> None:
        """Change the size of an entry; a tiny one counts for what an entry takes."""
        self._count(entry, max(size_bytes, _ENTRY_BYTES))

    def mark_read(self, entry: PackEntry) -> bool:
        """Note a use of an entry, if it was not dropped; returns whether it is the first."""
        if entry not in self.entries:
            return False
        self.entries.move_to_end(entry)
        entry.used_at = self._clock()
        is_first, entry.is_unread = entry.is_unread, False
        if is_first:
            self.budget.unread_bytes -= entry.size_bytes
        return is_first

    def evict_for_demand(self, size_bytes: int) -> bool:
        """Evict packs until so much fits, read ones first; False if all are in transit."""
        evict = self.budget.evict
        return evict(size_bytes, lambda entry: entry.is_unread) or evict(size_bytes, lambda _: False)

    def evict_for_prefetch(self, size_bytes: int) -> bool:
        """Evict what is unused until so much fits, and a pack on demand; else nothing, and return False."""
        busy_since = self._clock() - _BUSY_SECONDS
        return self.budget.evict(
            size_bytes + MAX_PACK_BYTES, lambda entry: entry.is_unread or entry.used_at > busy_since
        )

    def drop(self, entry: PackEntry) -> None:
        """Drop an entry, if present."""
        if entry in self.entries:
            self._count(entry, 0)
            del self.entries[entry]
            of_blob = self._of_blob[entry.blob]
            of_blob.remove(entry)
            if not of_blob:
                del self._of_blob[entry.blob]

    def drop_parts(self, pack: Digest) -> None:
        """Drop the parts of a pack that is here as a whole."""
        for entry in list(self._of_blob.get(pack, ())):
            if entry.end is not None and entry.download.done():
                self.drop(entry)

    def drop_unused(self) -> None:
        """Drop what is unused for ``UNUSED_SECONDS``."""
        oldest = self._clock() - UNUSED_SECONDS
        for entry in list(self.entries):
            if entry.download.done() and entry.used_at < oldest:
                self.drop(entry)

    def close(self) -> None:
        """Drop everything, and take no more part in the budget."""
        for entry in list(self.entries):
            self.drop(entry)
        self.budget.memories.pop(self, None)

    def _count(self, entry: PackEntry, size_bytes: int) -> None:
        change = size_bytes - entry.size_bytes
        entry.size_bytes = size_bytes
        self.used_bytes += change
        self.budget.used_bytes += change
        if entry.is_unread:
            self.budget.unread_bytes += change

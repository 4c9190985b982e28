"""The memory of packs and small NARs: bounded, including those in transit, and released when unused."""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
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


@dataclass(slots=True)
class PackEntry:
    """A pack or a NAR, downloaded or in transit.

    Attributes:
        is_pack: whether it is a pack.
        download: returns the verified content.
        arrival: unverified parts of it before.
        used_at: when it was last used, or started, in seconds of the clock.
        is_unread: whether it was not used yet.
        size_bytes: that count against the capacity: the most it may have while its size is unknown.
    """

    is_pack: bool
    download: asyncio.Task[bytearray]
    arrival: Arrival
    used_at: float
    is_unread: bool = True
    size_bytes: int = 0


class PackBudget:
    """What the pack caches of all caches share: memory, and how many blobs are prefetched at a time.

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
        dropped: list[tuple[PackMemory, Digest]] = []
        if missing > 0:
            for entry, memory, blob in heapq.merge(
                *(memory.oldest_first() for memory in self.memories), key=lambda each: each[0].used_at
            ):
                if entry.download.done() and not is_spared(entry):
                    dropped.append((memory, blob))
                    missing -= entry.size_bytes
                    if missing <= 0:
                        break
        if missing > 0:
            return False
        for memory, blob in dropped:
            memory.drop(blob)
        return True


class PackMemory:
    """Counts the memory of one cache's packs, and evicts packs of any; ``clock`` is monotonic.

    Attributes:
        entries: the packs, the least recently used first.
        used_bytes: of these packs.
    """

    def __init__(self, budget: PackBudget, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self.entries: OrderedDict[Digest, PackEntry] = OrderedDict()
        self.used_bytes = 0
        budget.memories[self] = None

    @property
    def has_space(self) -> bool:
        """Whether one more pack fits without evictions."""
        return self._budget.used_bytes + MAX_PACK_BYTES <= self._budget.capacity_bytes

    def has_prefetch_space(self, size_bytes: int) -> bool:
        """Check whether so much more may be prefetched."""
        return self._budget.unread_bytes + size_bytes <= self._budget.capacity_bytes // _PREFETCH_SHARE

    def add(self, blob: Digest, entry: PackEntry, size_bytes: int) -> None:
        """Add a blob whose download has started; it counts for so much until its size is known."""
        self.entries[blob] = entry
        self.resize(entry, size_bytes)

    def resize(self, entry: PackEntry, size_bytes: int) -> None:
        """Change the size of a blob; a tiny one counts for what an entry takes."""
        self._count(entry, max(size_bytes, _ENTRY_BYTES))

    def mark_read(self, pack: Digest, entry: PackEntry) -> bool:
        """Note a use of a pack; returns whether it is the first."""
        self.entries.move_to_end(pack)
        entry.used_at = self._clock()
        is_first, entry.is_unread = entry.is_unread, False
        if is_first:
            self._budget.unread_bytes -= entry.size_bytes
        return is_first

    def evict_for_demand(self, size_bytes: int) -> bool:
        """Evict packs until so much fits, read ones first; False if all are in transit."""
        evict = self._budget.evict
        return evict(size_bytes, lambda entry: entry.is_unread) or evict(size_bytes, lambda _: False)

    def evict_for_prefetch(self, size_bytes: int) -> bool:
        """Evict what is unused until so much fits, and a pack on demand; else nothing, and return False."""
        busy_since = self._clock() - _BUSY_SECONDS
        return self._budget.evict(
            size_bytes + MAX_PACK_BYTES, lambda entry: entry.is_unread or entry.used_at > busy_since
        )

    def drop(self, pack: Digest) -> None:
        """Drop a pack, if present."""
        entry = self.entries.pop(pack, None)
        if entry is not None:
            self._count(entry, 0)

    def drop_unused(self) -> None:
        """Drop packs that are unused for ``UNUSED_SECONDS``."""
        oldest = self._clock() - UNUSED_SECONDS
        for pack, entry in list(self.entries.items()):
            if entry.download.done() and entry.used_at < oldest:
                self.drop(pack)

    def close(self) -> None:
        """Drop everything, and take no more part in the budget."""
        for pack in list(self.entries):
            self.drop(pack)
        self._budget.memories.pop(self, None)

    def oldest_first(self) -> Iterator[tuple[PackEntry, "PackMemory", Digest]]:
        """Iterate over the packs, the least recently used first."""
        return ((entry, self, blob) for blob, entry in self.entries.items())

    def _count(self, entry: PackEntry, size_bytes: int) -> None:
        change = size_bytes - entry.size_bytes
        entry.size_bytes = size_bytes
        self.used_bytes += change
        self._budget.used_bytes += change
        if entry.is_unread:
            self._budget.unread_bytes += change

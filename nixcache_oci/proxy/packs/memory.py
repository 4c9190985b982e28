"""The memory that packs take: bounded, with those on their way, and given back when nobody comes."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.oci.digest import Digest

UNUSED_SECONDS: Final = 120.0
"""Whoever asked for narinfos and for no NAR since is not coming back, nor is whoever has read a closure."""

# So large a part is for packs that nobody has asked for: a crawl or a dry run never will.
_PREFETCH_SHARE: Final = 4
# A pack that was read so recently makes no way for a guess.
_BUSY_SECONDS: Final = 2.0


class Arrival:
    """A pack on its way; implements ``Receiver``. Nothing of it is checked.

    A reader of a slice waits for the bytes of that slice, and not for all of the pack.

    Args:
        when_open: is told how many bytes the pack has, before they come.
    """

    def __init__(self, when_open: Callable[[int], Awaitable[None]]) -> None:
        self._when_open = when_open
        self._content = bytearray()
        self._arrived = 0
        self._is_over = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def begin(self, content: bytearray) -> None:
        """Take the place for the bytes, all of them."""
        self._content = content
        await self._when_open(len(content))

    def advance(self, arrived: int) -> None:
        """Hear that so many bytes are in their place."""
        self._arrived = arrived
        self._wake(arrived)

    def end(self) -> None:
        """Hear that no more will come."""
        self._is_over = True
        self._wake(max((end for end, _ in self._waiting), default=0))

    async def reach(self, end: int) -> None:
        """Wait until all bytes before ``end`` are here, or no more will come."""
        if not self._is_over and self._arrived < end:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append((end, waiting))
            await waiting

    def view(self, start: int, end: int) -> memoryview | None:
        """Give the bytes from ``start`` to before ``end``; None where they are not here."""
        return memoryview(self._content)[start:end] if end <= self._arrived else None

    def _wake(self, arrived: int) -> None:
        woken = [waiting for end, waiting in self._waiting if end <= arrived]
        self._waiting = [(end, waiting) for end, waiting in self._waiting if end > arrived]
        for waiting in woken:
            if not waiting.done():
                waiting.set_result(None)


@dataclass(slots=True)
class PackEntry:
    """A pack, downloaded or on its way.

    Attributes:
        download: gives the content, checked.
        arrival: gives parts of it before, unchecked.
        used_at: when it was asked for last, or begun, in seconds of the clock.
        is_unread: whether nobody has asked for it yet.
        size_bytes: what it counts for: the largest pack while its size is not known.
    """

    download: asyncio.Task[bytearray]
    arrival: Arrival
    used_at: float
    is_unread: bool = True
    size_bytes: int = 0


class PackMemory:
    """Counts what packs take, and says which of them go.

    Args:
        capacity_bytes: what packs may take, with those on their way.
        clock: seconds, monotonic.

    Attributes:
        entries: the packs, the one used longest ago first.
        used_bytes: what counts against the capacity.
    """

    def __init__(self, capacity_bytes: int, clock: Callable[[], float]) -> None:
        self._capacity_bytes = capacity_bytes
        self._clock = clock
        self.entries: OrderedDict[Digest, PackEntry] = OrderedDict()
        self.used_bytes = 0
        self._unread_bytes = 0

    @property
    def has_space(self) -> bool:
        """Tell whether one more pack fits beside all that are here."""
        return self.used_bytes + MAX_PACK_BYTES <= self._capacity_bytes

    @property
    def has_prefetch_space(self) -> bool:
        """Tell whether one more may be here that nobody asked for."""
        return self._unread_bytes + MAX_PACK_BYTES <= self._capacity_bytes // _PREFETCH_SHARE

    def add(self, pack: Digest, download: asyncio.Task[bytearray], arrival: Arrival) -> PackEntry:
        """Take a pack in whose download has begun, and for which room was made."""
        entry = self.entries[pack] = PackEntry(download, arrival, self._clock())
        self.resize(entry, MAX_PACK_BYTES)
        return entry

    def resize(self, entry: PackEntry, size_bytes: int) -> None:
        """Count a pack for so much from now on."""
        change = size_bytes - entry.size_bytes
        entry.size_bytes = size_bytes
        self.used_bytes += change
        if entry.is_unread:
            self._unread_bytes += change

    def mark_read(self, pack: Digest, entry: PackEntry) -> bool:
        """Note that somebody asks for a pack; tells whether it is the first one to do so."""
        self.entries.move_to_end(pack)
        entry.used_at = self._clock()
        is_first, entry.is_unread = entry.is_unread, False
        if is_first:
            self._unread_bytes -= entry.size_bytes
        return is_first

    def evict_for_demand(self) -> bool:
        """Drop packs until one more fits, those first that were read; False if all are on their way."""
        return self._evict(1, lambda entry: entry.is_unread) or self._evict(1, lambda _: False)

    def evict_for_prefetch(self) -> bool:
        """Drop what nobody uses until one more fits, and a demand beside it; else nothing, and give False."""
        busy_since = self._clock() - _BUSY_SECONDS
        return self._evict(2, lambda entry: entry.is_unread or entry.used_at > busy_since)

    def drop(self, pack: Digest) -> None:
        """Forget a pack, if it is here."""
        entry = self.entries.pop(pack, None)
        if entry is not None:
            self.resize(entry, 0)

    def drop_unused(self) -> None:
        """Forget all that nobody has used for long."""
        oldest = self._clock() - UNUSED_SECONDS
        for pack, entry in list(self.entries.items()):
            if entry.download.done() and entry.used_at < oldest:
                self.drop(pack)

    def _evict(self, places: int, is_spared: Callable[[PackEntry], bool]) -> bool:
        missing = self.used_bytes + places * MAX_PACK_BYTES - self._capacity_bytes
        dropped: list[Digest] = []
        for digest, entry in self.entries.items():
            if missing <= 0:
                break
            if entry.download.done() and not is_spared(entry):
                dropped.append(digest)
                missing -= entry.size_bytes
        if missing > 0:
            return False
        for digest in dropped:
            self.drop(digest)
        return True

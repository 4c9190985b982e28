"""The room that packs take in memory: bounded, with those on their way, and given back when nobody comes."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.arrival import Arrival

UNUSED_SECONDS: Final = 120.0
"""Whoever asked for narinfos and for no NAR since is not coming back, nor is whoever has read a closure."""

# So large a part is for packs that nobody has asked for: a crawl or a dry run never will.
_AHEAD_PARTS: Final = 4
# A pack that was read so recently makes no way for a guess.
_BUSY_SECONDS: Final = 2.0


@dataclass(slots=True)
class Entry:
    """A pack, downloaded or on its way.

    Attributes:
        download: gives the content, checked.
        arrival: gives parts of it before, unchecked.
        used_at: when it was asked for last, or begun, in seconds of the clock.
        is_unread: whether nobody has asked for it yet.
        room_bytes: what it counts for: the largest pack while its size is not known.
    """

    download: asyncio.Task[bytearray]
    arrival: Arrival
    used_at: float
    is_unread: bool = True
    room_bytes: int = 0


class PackRoom:
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
        self.entries: OrderedDict[Digest, Entry] = OrderedDict()
        self.used_bytes = 0
        self._unread_bytes = 0

    @property
    def has_free(self) -> bool:
        """Tell whether one more pack fits beside all that are here."""
        return self.used_bytes + MAX_PACK_BYTES <= self._capacity_bytes

    @property
    def takes_guesses(self) -> bool:
        """Tell whether one more may be here that nobody asked for."""
        return self._unread_bytes + MAX_PACK_BYTES <= self._capacity_bytes // _AHEAD_PARTS

    def add(self, pack: Digest, download: asyncio.Task[bytearray], arrival: Arrival) -> Entry:
        """Take a pack in whose download has begun, and for which room was made."""
        entry = self.entries[pack] = Entry(download, arrival, self._clock())
        self.resize(entry, MAX_PACK_BYTES)
        return entry

    def resize(self, entry: Entry, room_bytes: int) -> None:
        """Count a pack for so much from now on."""
        change = room_bytes - entry.room_bytes
        entry.room_bytes = room_bytes
        self.used_bytes += change
        if entry.is_unread:
            self._unread_bytes += change

    def mark_read(self, pack: Digest, entry: Entry) -> bool:
        """Note that somebody asks for a pack; tells whether it is the first one to do so."""
        self.entries.move_to_end(pack)
        entry.used_at = self._clock()
        is_first, entry.is_unread = entry.is_unread, False
        if is_first:
            self._unread_bytes -= entry.room_bytes
        return is_first

    def make_for_demand(self) -> bool:
        """Drop packs until one more fits, those first that were read; False if all are on their way."""
        return self._make(1, lambda entry: entry.is_unread) or self._make(1, lambda _: False)

    def make_for_guess(self) -> bool:
        """Drop what nobody uses until one more fits, and a demand beside it; else nothing, and give False."""
        busy_since = self._clock() - _BUSY_SECONDS
        return self._make(2, lambda entry: entry.is_unread or entry.used_at > busy_since)

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

    def _make(self, places: int, is_spared: Callable[[Entry], bool]) -> bool:
        missing = self.used_bytes + places * MAX_PACK_BYTES - self._capacity_bytes
        dropped: list[Digest] = []
        for digest, entry in self.entries.items():
            if missing <= 0:
                break
            if entry.download.done() and not is_spared(entry):
                dropped.append(digest)
                missing -= entry.room_bytes
        if missing > 0:
            return False
        for digest in dropped:
            self.drop(digest)
        return True

"""Packs in memory: bounded, each downloaded once for all who want it, some before anybody asks.

Source: design section 3, promises 6, 8 and 9.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, pack_of
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import DigestError, Error
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.quarantine import Quarantine

_log = logging.getLogger(__name__)

CAPACITY_BYTES: Final = 4 * MAX_PACK_BYTES
# One place always stays for a pack that somebody is waiting for.
_MAX_UNREAD: Final = CAPACITY_BYTES // MAX_PACK_BYTES - 1
# Packs that a client will ask for when it has read those; a crawl names thousands.
_MAX_WANTED: Final = 16
# A client that asked for narinfos and then for no NAR, as a dry run does, is not coming back.
_UNREAD_SECONDS: Final = 120.0
# Every narinfo of a pack that cannot be had would ask for it again, hundreds of them in a second.
_NOT_AHEAD_SECONDS: Final = 30.0


@dataclass(slots=True)
class _Entry:
    """A pack, downloaded or on its way.

    Attributes:
        download: gives the content.
        room_bytes: what it counts for: the largest pack while its size is not known.
        since: when the download began, in seconds of the clock.
    """

    download: asyncio.Task[bytearray]
    room_bytes: int
    since: float


class PackCache:
    """Gives the content of packs.

    Args:
        repository: where they lie.
        quarantine: takes the packs that turn out wrong.
        counters: of the proxy.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        repository: Repository,
        quarantine: Quarantine,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._quarantine = quarantine
        self._counters = counters
        self._clock = clock
        self._failed = Quarantine(clock, seconds=_NOT_AHEAD_SECONDS)
        self._entries: OrderedDict[Digest, _Entry] = OrderedDict()  # the one used longest ago first
        # Those of them that were fetched ahead, and that nobody has asked for yet; at most _MAX_UNREAD.
        self._unread: dict[Digest, _Entry] = {}
        # Those that there was no room for, and when their narinfo was served.
        self._wanted: dict[Digest, float] = {}
        self._full_until = -math.inf  # seconds of the clock: before, none of them is given up
        self._room_freed = asyncio.Condition()

    @property
    def used_bytes(self) -> int:
        """Bytes that count against the capacity, packs on their way among them."""
        return sum(entry.room_bytes for entry in self._entries.values())

    async def get(self, pack: Digest) -> bytearray:
        """Give a pack; whoever asks for the same one meanwhile shares the download.

        Raises:
            RegistryError: it could not be fetched.
            DigestError: it is not what its digest says.
            FormatError: it is larger than a pack may be.
        """
        entry = self._entries.get(pack)
        if entry is None:
            async with self._room_freed:
                await self._room_freed.wait_for(lambda: pack in self._entries or self._make_room())
                entry = self._entries.get(pack) or self._start(pack)
        self._mark_read(pack)
        # A client that hangs up must not stop the download for the others.
        return await asyncio.shield(entry.download)

    def at_hand(self, pack: Digest) -> bytearray | None:
        """Give what ``get`` would give at once; None where it would have to wait, or fail."""
        entry = self._entries.get(pack)
        # A download that fails drops its entry; only one that was cancelled before it began does not.
        if entry is None or not entry.download.done() or entry.download.cancelled():
            return None
        self._mark_read(pack)
        return entry.download.result()

    def fetch_ahead_for(self, narinfo: bytes) -> None:
        """Download the pack that a narinfo's NAR lies in, if it lies in one: the client asks for it next."""
        # First, because a crawl serves thousands of narinfos to no end.
        if not self._may_fetch_ahead() and len(self._wanted) >= _MAX_WANTED:
            return
        if (pack := pack_of(narinfo)) is not None:
            self.fetch_ahead(pack)

    def fetch_ahead(self, pack: Digest) -> None:
        """Download a pack that will be asked for soon, where there is room that nobody else wants.

        Where there is none, the pack has its turn when one that was fetched ahead is read.
        """
        if pack in self._entries or pack in self._quarantine or pack in self._failed:
            return
        for digest in [digest for digest, entry in self._unread.items() if self._is_given_up(entry)]:
            self._drop(digest)
        if self._may_fetch_ahead() and self._make_room(spare_unread=True):
            self._wanted.pop(pack, None)
            self._unread[pack] = self._start(pack)
            self._counters.packs_fetched_ahead += 1
        elif len(self._wanted) < _MAX_WANTED:
            self._wanted.setdefault(pack, self._clock())

    async def close(self) -> None:
        """End the downloads."""
        downloads = [entry.download for entry in self._entries.values()]
        for download in downloads:
            download.cancel()
        await asyncio.gather(*downloads, return_exceptions=True)

    def _mark_read(self, pack: Digest) -> None:
        self._entries.move_to_end(pack)
        self._wanted.pop(pack, None)
        if self._unread.pop(pack, None) is not None:
            self._fetch_wanted()

    def _fetch_wanted(self) -> None:
        """Go on, in the order of the narinfos: it is that of the closure, and of its packs."""
        oldest = self._clock() - _UNREAD_SECONDS
        for pack, since in list(self._wanted.items()):
            if since < oldest:
                del self._wanted[pack]
            elif self._may_fetch_ahead():
                self.fetch_ahead(pack)

    def _may_fetch_ahead(self) -> bool:
        if len(self._unread) < _MAX_UNREAD:
            return True
        # For every narinfo of a crawl: one look at the clock, and not one at each pack.
        if self._clock() <= self._full_until:
            return False
        self._full_until = min(entry.since for entry in self._unread.values()) + _UNREAD_SECONDS
        return any(map(self._is_given_up, self._unread.values()))

    def _drop(self, pack: Digest) -> None:
        self._entries.pop(pack, None)
        self._unread.pop(pack, None)

    def _is_given_up(self, entry: _Entry) -> bool:
        return entry.download.done() and self._clock() - entry.since > _UNREAD_SECONDS

    def _make_room(self, *, spare_unread: bool = False) -> bool:
        """Drop packs until one more fits, those longest unused first; none, and False, if it never would."""
        missing = self.used_bytes + MAX_PACK_BYTES - CAPACITY_BYTES
        dropped: list[Digest] = []
        for digest, entry in self._entries.items():
            if missing <= 0:
                break
            if entry.download.done() and not (spare_unread and digest in self._unread):
                dropped.append(digest)
                missing -= entry.room_bytes
        if missing > 0:
            return False
        for digest in dropped:
            self._drop(digest)
        return True

    def _start(self, pack: Digest) -> _Entry:
        download = asyncio.create_task(self._download(pack), name=f"pack {pack.hex[:12]}")
        entry = _Entry(download, MAX_PACK_BYTES, self._clock())
        self._entries[pack] = entry
        download.add_done_callback(_retrieve)
        return entry

    async def _download(self, pack: Digest) -> bytearray:
        try:
            content = await read_blob(self._repository, pack, MAX_PACK_BYTES)
        except BaseException as error:
            # A failed download must not stay: the next request tries again, or finds it in quarantine.
            self._drop(pack)
            self._failed.add(pack)
            if isinstance(error, DigestError):
                self._quarantine.add(pack)
            if isinstance(error, Error):
                _log.warning("pack not fetched", extra={"fields": {"error": str(error)}})
            raise
        else:
            self._entries[pack].room_bytes = len(content)
            self._counters.packs_fetched += 1
            return content
        finally:
            async with self._room_freed:
                self._room_freed.notify_all()


def _retrieve(download: asyncio.Task[bytearray]) -> None:
    # A pack that was fetched ahead has nobody to hear of its failure, which was logged already.
    if not download.cancelled():
        download.exception()

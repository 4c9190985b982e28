"""Packs in memory: bounded, each downloaded once for all who want it, some before anybody asks.

Source: design section 3, promises 6, 8 and 9.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
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
        is_unread: fetched ahead, and nobody has asked for it yet.
        since: when the download began, in seconds of the clock.
    """

    download: asyncio.Task[bytearray]
    room_bytes: int
    is_unread: bool
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
                entry = self._entries.get(pack) or self._start(pack, is_unread=False)
        entry.is_unread = False
        self._entries.move_to_end(pack)
        # A client that hangs up must not stop the download for the others.
        return await asyncio.shield(entry.download)

    def fetch_ahead(self, pack: Digest) -> None:
        """Download a pack that will be asked for soon, where there is room that nobody else wants."""
        if pack in self._entries or pack in self._quarantine or pack in self._failed:
            return
        unread = [(digest, entry) for digest, entry in self._entries.items() if entry.is_unread]
        given_up = [digest for digest, entry in unread if self._is_given_up(entry)]
        for digest in given_up:
            del self._entries[digest]
        if len(unread) - len(given_up) < _MAX_UNREAD and self._make_room(spare_unread=True):
            self._start(pack, is_unread=True)
            self._counters.packs_fetched_ahead += 1

    async def close(self) -> None:
        """End the downloads."""
        downloads = [entry.download for entry in self._entries.values()]
        for download in downloads:
            download.cancel()
        await asyncio.gather(*downloads, return_exceptions=True)

    def _is_given_up(self, entry: _Entry) -> bool:
        return entry.download.done() and self._clock() - entry.since > _UNREAD_SECONDS

    def _make_room(self, *, spare_unread: bool = False) -> bool:
        """Drop packs until one more fits, those longest unused first; none, and False, if it never would."""
        missing = self.used_bytes + MAX_PACK_BYTES - CAPACITY_BYTES
        dropped: list[Digest] = []
        for digest, entry in self._entries.items():
            if missing <= 0:
                break
            if entry.download.done() and not (spare_unread and entry.is_unread):
                dropped.append(digest)
                missing -= entry.room_bytes
        if missing > 0:
            return False
        for digest in dropped:
            del self._entries[digest]
        return True

    def _start(self, pack: Digest, *, is_unread: bool) -> _Entry:
        download = asyncio.create_task(self._download(pack), name=f"pack {pack.hex[:12]}")
        entry = _Entry(download, MAX_PACK_BYTES, is_unread, self._clock())
        self._entries[pack] = entry
        download.add_done_callback(_retrieve)
        return entry

    async def _download(self, pack: Digest) -> bytearray:
        try:
            content = await read_blob(self._repository, pack, MAX_PACK_BYTES)
        except BaseException as error:
            # A failed download must not stay: the next request tries again, or finds it in quarantine.
            self._entries.pop(pack, None)
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

"""The pack cache: bounded, with shared downloads and prefetching, also of small NARs outside packs.

Source: design section 3, promises 6, 8 and 9.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import DigestError, Error, FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.packs.memory import UNUSED_SECONDS, Arrival, PackBudget, PackEntry, PackMemory
from nixcache_oci.proxy.packs.prefetch import MAX_NAR_BYTES, Prefetch
from nixcache_oci.proxy.packs.slices import SliceHashes
from nixcache_oci.proxy.packs.sums import PackSums
from nixcache_oci.proxy.verified import Quarantine

_log = logging.getLogger(__name__)

# To prefetch later; a crawl names thousands, and where it does, nothing is in transit.
_MOST_WANTED: Final = 1024
_MOST_WANTED_AT_REST: Final = 64
# A pack of unknown size counts for as much as the last one whose size became known, and for no less.
_LEAST_GUESS_BYTES: Final = 1024 * 1024
# A client that reads a pack will read the others whose narinfos it has, in an unknown order.
_PREFETCH_PER_READ: Final = 2
_SWEEP_SECONDS: Final = UNUSED_SECONDS / 4
# Else each narinfo of an unavailable pack would request it again, hundreds of times per second.
_FAILED_SECONDS: Final = 30.0
# Packs that do not fit together are downloaded whole at most once in this time.
_WHOLE_AGAIN_SECONDS: Final = 600.0
_MAX_SUMS: Final = 512


class _NoSpaceError(Exception):
    """A prefetched blob is larger than was expected, and does not fit."""


class PackCache:
    """Caches packs and prefetched NARs of one cache within ``budget``; corrupt ones go to ``quarantine``."""

    def __init__(
        self,
        repository: Repository,
        quarantine: Quarantine,
        counters: Counters,
        budget: PackBudget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._quarantine = quarantine
        self._counters = counters
        self._clock = clock
        self._failed = Quarantine(clock, seconds=_FAILED_SECONDS)
        self._budget = budget
        self._memory = PackMemory(budget, clock)
        # And when its narinfo was served.
        self._wanted: dict[Digest, tuple[Prefetch, float]] = {}
        self._guess_bytes = MAX_PACK_BYTES
        # Of packs that came, and when that was.
        self._sums: BoundedCache[Digest, tuple[PackSums, float]] = BoundedCache(_MAX_SUMS)
        self._hashes = SliceHashes()
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes that count against the capacity, including packs in transit."""
        return self._memory.used_bytes

    async def cut_out(self, pack: Digest, start: int, end: int) -> bytes:
        """Return a part of a pack: from memory, or fetched alone if the pack was evicted.

        Concurrent calls share a download.

        Raises:
            RegistryError: it could not be fetched.
            DigestError: the pack, or the part, does not match its digest.
            FormatError: the pack is too large, or the part is outside it.
        """
        sums = None if pack in self._memory.entries else self._sums_instead_of(pack)
        if sums is None:
            return bytes(await self._cut_out_of_whole(pack, start, end))
        _check_extent(pack, start, end, sums.size)
        try:
            return await sums.read(self._repository, pack, start, end)
        except DigestError:
            self._quarantine.add(pack)
            raise

    def cached(self, pack: Digest, start: int, end: int) -> memoryview | None:
        """Return a part that is in memory; None if ``cut_out`` would wait, or fail.

        The view keeps the whole pack in memory, even after it was evicted here.
        """
        entry = self._memory.entries.get(pack)
        if entry is None:
            return None
        if not entry.download.done():
            part = self._early_part(pack, entry, start, end)
        # A download that fails drops its entry; only one that was cancelled before it began does not.
        elif entry.download.cancelled() or end > len(content := entry.download.result()):
            return None
        else:
            part = memoryview(content)[start:end]
        if part is not None:
            self._mark_read(pack, entry)
        return part

    async def nar(self, blob: Digest) -> bytearray | None:
        """Return a whole NAR that was prefetched; if that failed, or there is none, the caller streams it.

        Raises:
            DigestError: it does not match its digest, and is in quarantine.
        """
        self._wanted.pop(blob, None)
        entry = self._memory.entries.get(blob)
        if entry is None or entry.is_pack:
            return None
        self._mark_read(blob, entry)
        try:
            return await asyncio.shield(entry.download)
        except DigestError:
            raise
        except Error:
            return None

    def cached_nar(self, blob: Digest) -> memoryview | None:
        """Return a whole NAR, if it is in memory."""
        entry = self._memory.entries.get(blob)
        if entry is None or entry.is_pack or not entry.download.done() or entry.download.cancelled():
            return None
        self._mark_read(blob, entry)
        return memoryview(entry.download.result())

    def prefetch_for(self, narinfo: bytes) -> None:
        """Prefetch a narinfo's NAR, or its pack: the client asks for it next."""
        # First, because a crawl asks for thousands of narinfos.
        most = _MOST_WANTED if self._budget.in_transit else _MOST_WANTED_AT_REST
        if len(self._wanted) >= most or (wanted := Prefetch.for_narinfo(narinfo)) is None:
            return
        entry = self._memory.entries.get(wanted.blob)
        if wanted.is_pack and (entry is None or not entry.download.done()):
            self._hashes.learn(narinfo)
        self.prefetch(wanted)

    def prefetch(self, wanted: Prefetch) -> None:
        """Prefetch if there is space, else later, when others are read."""
        if not self._is_of_use(wanted.blob) or (self._has_space(wanted) and self._begin_prefetch(wanted)):
            return
        if len(self._wanted) < _MOST_WANTED:
            self._wanted.setdefault(wanted.blob, (wanted, self._clock()))

    async def close(self) -> None:
        """Cancel the downloads."""
        self._wanted.clear()  # else the end of one would begin the next
        if self._sweeping is not None:
            self._sweeping.cancel()
        await cancel_all([entry.download for entry in self._memory.entries.values()])
        self._memory.close()

    async def _cut_out_of_whole(self, pack: Digest, start: int, end: int) -> memoryview:
        entries = self._memory.entries
        entry = entries.get(pack)
        if entry is None:
            async with self._budget.space_freed:
                await self._budget.space_freed.wait_for(
                    lambda: pack in entries or self._memory.evict_for_demand(MAX_PACK_BYTES)
                )
                entry = entries.get(pack) or self._start(pack, MAX_PACK_BYTES, is_pack=True)
        self._mark_read(pack, entry)
        if not entry.download.done() and self._hashes.are_known(pack, start, end):
            await entry.arrival.reach(end)
            if (part := self._early_part(pack, entry, start, end)) is not None:
                return part
        # Cancelling one client must not stop the download for others.
        content = await asyncio.shield(entry.download)
        _check_extent(pack, start, end, len(content))
        return memoryview(content)[start:end]

    def _early_part(self, pack: Digest, entry: PackEntry, start: int, end: int) -> memoryview | None:
        """Return a part of an incomplete pack, if it has arrived and matches its own hash."""
        part = entry.arrival.view(start, end)
        return part if part is not None and self._hashes.agree(pack, start, part) else None

    def _mark_read(self, pack: Digest, entry: PackEntry) -> None:
        self._wanted.pop(pack, None)
        if self._memory.mark_read(pack, entry):
            self._fetch_wanted(_PREFETCH_PER_READ)

    def _fetch_wanted(self, at_least: int = 0) -> None:
        """Prefetch in the order of narinfos, at least some even if much is unread."""
        for wanted, _since in list(self._wanted.values()):
            if not self._is_of_use(wanted.blob):
                del self._wanted[wanted.blob]
            elif (at_least > 0 or self._has_space(wanted)) and self._begin_prefetch(wanted):
                at_least -= 1
            else:
                return

    def _is_of_use(self, blob: Digest) -> bool:
        return not (
            blob in self._memory.entries
            or blob in self._quarantine
            or blob in self._failed
            or self._sums_instead_of(blob) is not None
        )

    def _has_space(self, wanted: Prefetch) -> bool:
        return self._memory.has_prefetch_space(self._expected_bytes(wanted))

    def _expected_bytes(self, wanted: Prefetch) -> int:
        return self._guess_bytes if wanted.size_bytes is None else wanted.size_bytes

    def _begin_prefetch(self, wanted: Prefetch) -> bool:
        size = self._expected_bytes(wanted)
        if not (self._budget.has_turn and self._memory.evict_for_prefetch(size)):
            return False
        self._wanted.pop(wanted.blob, None)
        self._budget.in_transit += 1
        self._start(wanted.blob, size, is_pack=wanted.is_pack).download.add_done_callback(self._end_prefetch)
        if wanted.is_pack:
            self._counters.packs_fetched_ahead += 1
        else:
            self._counters.nars_fetched_ahead += 1
        return True

    def _end_prefetch(self, _: asyncio.Task[bytearray]) -> None:
        self._budget.in_transit -= 1
        self._fetch_wanted()

    def _sums_instead_of(self, pack: Digest) -> PackSums | None:
        """Return the checksums of a pack that is not downloaded whole, because others would be evicted."""
        sums, since = self._sums.get(pack) or (None, 0.0)
        return None if self._memory.has_space or self._clock() - since > _WHOLE_AGAIN_SECONDS else sums

    def _sweep(self) -> None:
        """Drop unused packs."""
        self._memory.drop_unused()
        oldest = self._clock() - UNUSED_SECONDS
        self._wanted = {blob: one for blob, one in self._wanted.items() if one[1] >= oldest}
        self._sweeping = None
        self._fetch_wanted()
        if self._memory.entries:
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _start(self, blob: Digest, expected_bytes: int, *, is_pack: bool) -> PackEntry:
        async def when_open(size: int) -> None:
            if is_pack:
                self._guess_bytes = max(size, _LEAST_GUESS_BYTES)
            if size > entry.size_bytes:
                await self._find_space(blob, entry, size)
            self._memory.resize(entry, size)
            self._fetch_wanted()
            await self._notify_space()

        arrival = Arrival(when_open)
        download = asyncio.create_task(
            self._download(blob, arrival, is_pack=is_pack),
            name=f"{'pack' if is_pack else 'nar'} {blob.hex[:12]}",
        )
        download.add_done_callback(retrieve)  # a failure is logged; a prefetch has no waiter
        download.add_done_callback(lambda _: arrival.end())
        self._sweep_later()
        entry = PackEntry(is_pack, download, arrival, self._clock())
        self._memory.add(blob, entry, expected_bytes)
        return entry

    async def _find_space(self, blob: Digest, entry: PackEntry, size: int) -> None:
        """Find space for a blob that turns out larger than it counts for, before its bytes are read.

        Raises:
            _NoSpaceError: there is none for a prefetch, which has its turn later.
        """
        more = size - entry.size_bytes
        if not entry.is_unread:  # a client waits for it
            async with self._budget.space_freed:
                await self._budget.space_freed.wait_for(lambda: self._memory.evict_for_demand(more))
        elif not (self._memory.has_prefetch_space(more) and self._memory.evict_for_prefetch(more)):
            self._memory.drop(blob)  # now: no client may begin to wait for it
            wanted = Prefetch(blob, entry.is_pack, size)
            self._wanted = {blob: (wanted, self._clock()), **self._wanted}
            raise _NoSpaceError

    async def _download(self, pack: Digest, arrival: Arrival, *, is_pack: bool) -> bytearray:
        sums = None
        try:
            limit = MAX_PACK_BYTES if is_pack else MAX_NAR_BYTES
            content = await read_blob(self._repository, pack, limit, receiver=arrival)
            if is_pack:
                sums = await asyncio.to_thread(PackSums.of, content)
        except _NoSpaceError:
            raise
        except BaseException as error:
            # Drop a failed download: the next request tries again, or finds it in quarantine.
            self._memory.drop(pack)
            self._failed.add(pack)
            if isinstance(error, DigestError):
                self._quarantine.add(pack)
            if isinstance(error, Error):
                message = "pack not fetched" if is_pack else "NAR not fetched ahead"
                _log.warning(message, extra={"fields": {"error": str(error)}})
            raise
        else:
            if sums is not None:
                self._sums.put(pack, (sums, self._clock()))
                self._counters.packs_fetched += 1
            return content
        finally:
            await self._notify_space()

    async def _notify_space(self) -> None:
        async with self._budget.space_freed:
            self._budget.space_freed.notify_all()


def _check_extent(pack: Digest, start: int, end: int, size: int) -> None:
    if end > size:
        raise FormatError(f"pack {pack}: bytes {start} to {end} are outside its {size}")

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
from nixcache_oci.clients.resume import read_blob, read_range
from nixcache_oci.errors import DigestError, Error, FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.packs.memory import UNUSED_SECONDS, Arrival, PackBudget, PackEntry, PackMemory
from nixcache_oci.proxy.packs.prefetch import Prefetch
from nixcache_oci.proxy.packs.prefetcher import Prefetcher
from nixcache_oci.proxy.packs.slices import SliceHashes
from nixcache_oci.proxy.packs.sums import PackSums
from nixcache_oci.proxy.packs.wanted import Extent, Wanted
from nixcache_oci.proxy.verified import Quarantine

_log = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = UNUSED_SECONDS / 4
# Else each narinfo of an unavailable pack would request it again, hundreds of times per second.
_FAILED_SECONDS: Final = 30.0
# Packs that do not fit together are downloaded whole at most once in this time.
_WHOLE_AGAIN_SECONDS: Final = 600.0
_MAX_SUMS: Final = 512


class PackCache:
    """Caches packs and prefetched NARs of one cache within ``budget``; corrupt ones go to ``quarantine``.

    Half as many ranges of packs as may be prefetched are fetched for clients that wait for them.
    """

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
        self._memory = PackMemory(budget, clock)
        self._prefetcher = Prefetcher(self._memory, self._start, self._is_of_use, counters, clock)
        self._most_on_demand = max(1, budget.most_in_transit // 2)
        self._on_demand = 0
        # Of packs that came, and when that was.
        self._sums: BoundedCache[Digest, tuple[PackSums, float]] = BoundedCache(_MAX_SUMS)
        self._hashes = SliceHashes()
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes that count against the capacity, including packs in transit."""
        return self._memory.used_bytes

    async def cut_out(self, pack: Digest, start: int, end: int) -> bytes:
        """Return a part of a pack: from memory, or fetched with others that are wanted, or as a whole.

        Concurrent calls share a download.

        Raises:
            RegistryError: it could not be fetched.
            DigestError: the pack, or the part, does not match its digest.
            FormatError: the pack is too large, or the part is outside it.
        """
        entry = self._memory.find(pack, start, end)
        if entry is None and self._hashes.are_known(pack, start, end) and pack not in self._failed:
            wanted = self._prefetcher.wanted_of(pack)
            if not wanted.is_whole:
                entry = await self._fetch_with_others(wanted, start, end)
        if entry is not None:
            self._mark_read(entry)
            if entry.is_pack and self._hashes.are_known(pack, start, end):
                await entry.reach(end)
            if (part := self._part_of(entry, start, end)) is not None:
                return bytes(part)
            if entry.download.cancelled():
                raise asyncio.CancelledError
        sums = None if self._memory.find(pack) is not None else self._sums_instead_of(pack)
        if sums is None:
            return await self._cut_out_of_whole(pack, start, end)
        _check_extent(pack, start, end, sums.size)
        try:
            return await sums.read(self._repository, pack, start, end)
        except DigestError:
            self._quarantine.add(pack)
            raise

    def cached(self, pack: Digest, start: int, end: int) -> memoryview | None:
        """Return a part that is in memory; None if ``cut_out`` would wait, or fail.

        The view keeps all that was downloaded with it in memory, even after it was evicted here.
        """
        entry = self._memory.find(pack, start, end)
        if entry is None or (part := self._part_of(entry, start, end)) is None:
            return None
        self._mark_read(entry)
        return part

    async def nar(self, blob: Digest) -> bytearray | None:
        """Return a whole NAR that was prefetched; if that failed, or there is none, the caller streams it.

        Raises:
            DigestError: it does not match its digest, and is in quarantine.
        """
        self._prefetcher.drop(blob)
        entry = self._memory.find(blob)
        if entry is None or entry.is_pack:
            self._prefetcher.note_read(is_first=False)
            return None
        self._mark_read(entry)
        try:
            return await asyncio.shield(entry.download)
        except DigestError:
            raise
        except Error:
            return None

    def cached_nar(self, blob: Digest) -> memoryview | None:
        """Return a whole NAR, if it is in memory."""
        entry = self._memory.find(blob)
        if entry is None or entry.is_pack or not entry.is_verified:
            return None
        self._mark_read(entry)
        return memoryview(entry.download.result())

    def prefetch_for(self, narinfo: bytes) -> None:
        """Prefetch a narinfo's NAR: the client asks for it next."""
        # First, because a crawl asks for thousands of narinfos.
        if not self._prefetcher.is_full and (prefetch := Prefetch.for_narinfo(narinfo)) is not None:
            self.prefetch(prefetch)

    def prefetch(self, prefetch: Prefetch) -> None:
        """Prefetch if there is space, else later, when others are read."""
        blob, part = prefetch.blob, prefetch.part
        if part is None:
            if self._memory.find(blob) is None:
                self._prefetcher.add_nar(blob, prefetch.size_bytes)
            return
        entry = self._memory.find(blob, *part)
        if entry is None or not entry.is_verified:
            self._hashes.learn(blob, *part, prefetch.file_hash)
        if entry is None:
            self._prefetcher.add_part(blob, part)

    async def close(self) -> None:
        """Cancel the downloads."""
        self._prefetcher.clear()  # else the end of one would begin the next
        if self._sweeping is not None:
            self._sweeping.cancel()
        await cancel_all([entry.download for entry in self._memory.entries])
        self._memory.close()

    async def _fetch_with_others(self, wanted: Wanted, start: int, end: int) -> PackEntry:
        """Fetch a part of a pack for a client, and what is wanted near it."""
        memory, pack = self._memory, wanted.blob
        extent = wanted.range_of((start, end))
        size = extent[1] - extent[0]

        def has_space() -> bool:
            return self._on_demand < self._most_on_demand and memory.evict_for_demand(size)

        space_freed = memory.budget.space_freed
        async with space_freed:
            await space_freed.wait_for(lambda: memory.find(pack, start, end) is not None or has_space())
            if (entry := memory.find(pack, start, end)) is not None:
                return entry
            self._on_demand += 1
            self._prefetcher.drop(pack, extent)
            return self._start(wanted, size, extent, is_on_demand=True)

    async def _fetch_whole(self, pack: Digest) -> PackEntry:
        memory = self._memory
        if (entry := memory.find(pack)) is not None:
            return entry
        async with self._memory.budget.space_freed:
            await self._memory.budget.space_freed.wait_for(
                lambda: memory.find(pack) is not None or memory.evict_for_demand(MAX_PACK_BYTES)
            )
            if (entry := memory.find(pack)) is not None:
                return entry
            wanted = self._prefetcher.wanted_of(pack)
            self._prefetcher.drop(pack)
            return self._start(wanted, MAX_PACK_BYTES, None)

    async def _cut_out_of_whole(self, pack: Digest, start: int, end: int) -> bytes:
        entry = await self._fetch_whole(pack)
        self._mark_read(entry)
        # Cancelling one client must not stop the download for others.
        content = await asyncio.shield(entry.download)
        _check_extent(pack, start, end, len(content))
        return bytes(memoryview(content)[start:end])

    def _part_of(self, entry: PackEntry, start: int, end: int) -> memoryview | None:
        """Return a part if it has arrived, and its pack, or the part itself, is verified."""
        part = entry.view(start, end)
        if part is None or entry.is_verified or (start, end) in entry.verified_parts:
            return part
        if not self._hashes.agree(entry.blob, start, part):
            return None
        entry.verified_parts.add((start, end))
        return part

    def _mark_read(self, entry: PackEntry) -> None:
        self._prefetcher.note_read(is_first=self._memory.mark_read(entry))

    def _is_of_use(self, blob: Digest) -> bool:
        return blob not in self._quarantine and blob not in self._failed

    def _sums_instead_of(self, pack: Digest) -> PackSums | None:
        """Return the checksums of a pack that is not downloaded whole, because others would be evicted."""
        sums, since = self._sums.get(pack) or (None, 0.0)
        return None if self._memory.has_space or self._clock() - since > _WHOLE_AGAIN_SECONDS else sums

    def _sweep(self) -> None:
        """Drop unused packs."""
        self._memory.drop_unused()
        self._prefetcher.drop_older(self._clock() - UNUSED_SECONDS)
        self._sweeping = None
        self._prefetcher.begin()
        if self._memory.entries:
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _start(
        self, wanted: Wanted, most_bytes: int, extent: Extent | None, *, is_on_demand: bool = False
    ) -> PackEntry:
        blob, is_pack = wanted.blob, wanted.is_pack

        async def when_open(size: int) -> None:
            self._memory.resize(entry, size)
            self._prefetcher.begin()
            await self._notify_space()

        async def download() -> bytearray:
            try:
                return await self._download(entry, most_bytes)
            except BaseException as error:
                # Drop a failed download: the next request tries again, or finds it in quarantine.
                self._memory.drop(entry)
                self._failed.add(blob)
                if isinstance(error, DigestError):
                    self._quarantine.add(blob)
                if isinstance(error, Error):
                    message = "pack not fetched" if is_pack else "NAR not fetched ahead"
                    _log.warning(message, extra={"fields": {"error": str(error)}})
                raise
            finally:
                self._on_demand -= is_on_demand
                await self._notify_space()

        name = f"{'pack' if is_pack else 'nar'} {blob.hex[:12]}"
        start, end = extent or (0, None)
        entry = PackEntry(
            blob,
            start,
            end,
            is_pack,
            wanted.batch,
            asyncio.create_task(download(), name=name),
            Arrival(when_open),
            self._clock(),
        )
        entry.download.add_done_callback(retrieve)  # a failure is logged; a prefetch has no waiter
        entry.download.add_done_callback(lambda _: entry.arrival.end())
        self._sweep_later()
        self._memory.add(entry, most_bytes)
        return entry

    async def _download(self, entry: PackEntry, most_bytes: int) -> bytearray:
        repository, blob = self._repository, entry.blob
        if entry.end is not None:
            return await read_range(repository, blob, entry.start, entry.end, entry.arrival)
        content = await read_blob(repository, blob, most_bytes, receiver=entry.arrival)
        if entry.is_pack:
            sums = await asyncio.to_thread(PackSums.of, content)
            self._sums.put(blob, (sums, self._clock()))
            self._counters.packs_fetched += 1
            self._memory.drop_parts(blob)
        return content

    async def _notify_space(self) -> None:
        async with self._memory.budget.space_freed:
            self._memory.budget.space_freed.notify_all()


def _check_extent(pack: Digest, start: int, end: int, size: int) -> None:
    if end > size:
        raise FormatError(f"pack {pack}: bytes {start} to {end} are outside its {size}")

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
from nixcache_oci.proxy.packs.memory import UNUSED_SECONDS, Arrival, PackEntry, PackMemory
from nixcache_oci.proxy.packs.prefetch import Prefetch
from nixcache_oci.proxy.packs.slices import SliceHashes
from nixcache_oci.proxy.packs.sums import PackSums
from nixcache_oci.proxy.packs.wanted import Extent, Wanted, WantedList, ranges_of
from nixcache_oci.proxy.verified import Quarantine

_log = logging.getLogger(__name__)

# NARs to prefetch later; a crawl names thousands, and where it does, nothing is in transit.
_MOST_WANTED: Final = 8192
_MOST_WANTED_AT_REST: Final = 64
# A client that reads a pack will read the others whose narinfos it has, in an unknown order.
_PREFETCH_PER_READ: Final = 2
# While clients ask for narinfos only, they name more of each pack: its first range alone is fetched, of so
# many packs at a time, until so many NARs are wanted.
_MOST_RANGES_BEFORE_NARS: Final = 4
_MOST_WANTED_BEFORE_NARS: Final = 256
_SWEEP_SECONDS: Final = UNUSED_SECONDS / 4
# Else each narinfo of an unavailable pack would request it again, hundreds of times per second.
_FAILED_SECONDS: Final = 30.0
# Packs that do not fit together are downloaded whole at most once in this time.
_WHOLE_AGAIN_SECONDS: Final = 600.0
_MAX_SUMS: Final = 512


class PackCache:
    """Caches at most ``capacity_bytes`` of packs and prefetched NARs; corrupt ones go to ``quarantine``.

    At most ``at_once`` are prefetched at a time, and half as many ranges of packs are fetched for clients
    that wait for them: each takes connections.
    """

    def __init__(
        self,
        repository: Repository,
        quarantine: Quarantine,
        counters: Counters,
        capacity_bytes: int,
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._quarantine = quarantine
        self._counters = counters
        self._clock = clock
        self._failed = Quarantine(clock, seconds=_FAILED_SECONDS)
        self._memory = PackMemory(capacity_bytes, clock)
        self._wanted = WantedList()
        self._at_once = at_once
        self._in_transit = 0
        self._ranges_in_transit = 0  # of those
        self._in_transit_on_demand = 0
        # Whether the last that clients asked for was a narinfo.
        self._more_will_be_wanted = False
        # Of packs that came, and when that was.
        self._sums: BoundedCache[Digest, tuple[PackSums, float]] = BoundedCache(_MAX_SUMS)
        self._hashes = SliceHashes()
        self._space_freed = asyncio.Condition()
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
            wanted = self._wanted.get(pack) or self._next_batch(pack)
            if not wanted.is_whole:
                entry = await self._fetch_with_others(wanted, start, end)
        if entry is not None:
            self._mark_read(entry)
            if self._hashes.are_known(pack, start, end):
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
        self._wanted.drop(blob)
        entry = self._memory.find(blob)
        if entry is None or entry.is_pack:
            self._fetch_after_narinfos()
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
        most = _MOST_WANTED if self._in_transit else _MOST_WANTED_AT_REST
        if len(self._wanted) < most and (prefetch := Prefetch.for_narinfo(narinfo)) is not None:
            self.prefetch(prefetch)

    async def close(self) -> None:
        """Cancel the downloads."""
        self._wanted.clear()  # else the end of one would begin the next
        if self._sweeping is not None:
            self._sweeping.cancel()
        await cancel_all(entry.download for entry in self._memory.entries)

    def prefetch(self, prefetch: Prefetch) -> None:
        """Prefetch if there is space, else later, when others are read."""
        blob, part = prefetch.blob, prefetch.part
        if part is None:
            if self._is_of_use(blob) and self._memory.find(blob) is None and self._wanted.get(blob) is None:
                self._wanted.add(wanted := Wanted(blob, prefetch.size_bytes, self._clock()))
                self._begin(wanted)
            return
        entry = self._memory.find(blob, *part)
        if entry is None or not entry.is_verified:
            self._hashes.learn(blob, *part, prefetch.file_hash)
        if entry is not None or not self._is_of_use(blob):
            return
        known = self._wanted.get(blob)
        wanted = known or self._next_batch(blob)
        if known is None:
            self._wanted.add(wanted)
        if wanted.is_pack:
            self._wanted.add_part(wanted, part)
            self._more_will_be_wanted = True
            self._begin(wanted)

    def _next_batch(self, pack: Digest) -> Wanted:
        return Wanted(pack, None, self._clock(), self._memory.last_batch_read(pack) + 1)

    async def _fetch_with_others(self, wanted: Wanted, start: int, end: int) -> PackEntry:
        """Fetch a part of a pack for a client, and what is wanted near it."""
        memory, pack = self._memory, wanted.blob
        extent = wanted.range_of((start, end))
        size = extent[1] - extent[0]

        def has_space() -> bool:
            is_free = self._in_transit_on_demand < max(1, self._at_once // 2)
            return is_free and memory.evict_for_demand(size)

        async with self._space_freed:
            await self._space_freed.wait_for(lambda: memory.find(pack, start, end) is not None or has_space())
            if (entry := memory.find(pack, start, end)) is not None:
                return entry
            self._in_transit_on_demand += 1
            entry = self._start(pack, size, extent, wanted.batch, is_on_demand=True)
        if (others := self._wanted.get(pack)) is not None:
            self._wanted.drop_parts(others, extent)
        return entry

    async def _fetch_whole(self, pack: Digest) -> PackEntry:
        memory = self._memory
        if (entry := memory.find(pack)) is not None:
            return entry
        async with self._space_freed:
            await self._space_freed.wait_for(
                lambda: memory.find(pack) is not None or memory.evict_for_demand(MAX_PACK_BYTES)
            )
            self._wanted.drop(pack)
            return memory.find(pack) or self._start(pack, MAX_PACK_BYTES, is_pack=True)

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
        if self._memory.mark_read(entry):
            self._more_will_be_wanted = False
            self._fetch_wanted(_PREFETCH_PER_READ)
        else:
            self._fetch_after_narinfos()

    def _fetch_after_narinfos(self) -> None:
        """Fetch what is wanted by now, if a client asks for the first NAR behind narinfos."""
        if self._more_will_be_wanted:
            self._more_will_be_wanted = False
            self._fetch_wanted()

    def _fetch_wanted(self, at_least: int = 0) -> None:
        """Prefetch in the order of narinfos, at least some even if much is unread."""
        if self._in_transit >= self._at_once:
            return
        for wanted in self._wanted:
            if not self._is_of_use(wanted.blob):
                self._wanted.drop(wanted.blob)
                continue
            before = self._in_transit
            if not self._begin(wanted, at_least) and not self._is_paused(wanted):
                return
            at_least = max(0, at_least - (self._in_transit - before))

    def _is_of_use(self, blob: Digest) -> bool:
        return blob not in self._quarantine and blob not in self._failed

    def _is_paused(self, wanted: Wanted) -> bool:
        """Check whether more of a pack will be wanted soon, so that fewer ranges have all of it."""
        if (
            not wanted.is_pack
            or not self._more_will_be_wanted
            or len(self._wanted) >= _MOST_WANTED_BEFORE_NARS
        ):
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
        if self._in_transit >= self._at_once or self._is_paused(wanted):
            return False  # before the ranges are made
        for start, end in ranges_of(wanted.parts):
            if not self._begin_one(wanted, end - start, (start, end), at_least):
                return False
            at_least -= 1
            self._wanted.drop_parts(wanted, (start, end))
        return True

    def _begin_one(self, wanted: Wanted, size: int, extent: Extent | None, at_least: int) -> bool:
        if self._in_transit >= self._at_once or self._is_paused(wanted):
            return False
        has_space = at_least > 0 or self._memory.has_prefetch_space(size)
        if not has_space or not self._memory.evict_for_prefetch(size):
            return False
        self._in_transit += 1
        self._ranges_in_transit += wanted.is_pack
        entry = self._start(wanted.blob, size, extent, wanted.batch, is_pack=wanted.is_pack)
        entry.download.add_done_callback(self._end_range if wanted.is_pack else self._end_prefetch)
        if wanted.is_pack:
            self._counters.ranges_fetched_ahead += 1
        else:
            self._counters.nars_fetched_ahead += 1
        return True

    def _end_range(self, download: asyncio.Task[bytearray]) -> None:
        self._ranges_in_transit -= 1
        self._end_prefetch(download)

    def _end_prefetch(self, _: asyncio.Task[bytearray]) -> None:
        self._in_transit -= 1
        self._fetch_wanted()

    def _sums_instead_of(self, pack: Digest) -> PackSums | None:
        """Return the checksums of a pack that is not downloaded whole, because others would be evicted."""
        sums, since = self._sums.get(pack) or (None, 0.0)
        return None if self._memory.has_space or self._clock() - since > _WHOLE_AGAIN_SECONDS else sums

    def _sweep(self) -> None:
        """Drop unused packs."""
        self._memory.drop_unused()
        self._wanted.drop_older(self._clock() - UNUSED_SECONDS)
        self._sweeping = None
        self._fetch_wanted()
        if self._memory.entries:
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _start(
        self,
        blob: Digest,
        most_bytes: int,
        extent: Extent | None = None,
        batch: int = 0,
        *,
        is_pack: bool = True,
        is_on_demand: bool = False,
    ) -> PackEntry:
        async def when_open(size: int) -> None:
            self._memory.resize(entry, size)
            self._fetch_wanted()
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
                self._in_transit_on_demand -= is_on_demand
                await self._notify_space()

        name = f"{'pack' if is_pack else 'nar'} {blob.hex[:12]}"
        start, end = extent or (0, None)
        entry = PackEntry(
            blob,
            start,
            end,
            is_pack,
            batch,
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
        async with self._space_freed:
            self._space_freed.notify_all()


def _check_extent(pack: Digest, start: int, end: int, size: int) -> None:
    if end > size:
        raise FormatError(f"pack {pack}: bytes {start} to {end} are outside its {size}")

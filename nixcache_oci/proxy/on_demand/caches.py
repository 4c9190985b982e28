"""Caches that nobody configured, opened when a request names them: anonymously, and within bounds.

Anybody who reaches the proxy may name any number of them, and whoever may push to one decides what is in it.
So each is small, few are open, and what is remembered of the others is bounded, too.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Final

from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex, ReadingLimits
from nixcache_oci.proxy.on_demand.disk import OnDemandDisk, Turns
from nixcache_oci.proxy.on_demand.entry import Entry
from nixcache_oci.proxy.on_demand.settings import OnDemandSettings
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.prefix import prefix_of, spellings

_log = logging.getLogger(__name__)

MOST_OPEN: Final = 64
"""Beyond, the least recently used is closed."""

MOST_ENTRIES: Final = 400_000
MOST_TABLE_BYTES: Final = 128 * 1024 * 1024
"""Limits of one cache; what is newer counts first."""

MOST_READ_AT_ONCE: Final = 4
"""Caches whose tables are read at the same time."""

MOST_DISK_BYTES: Final = 1024 * 1024 * 1024
"""Of all indexes on disk, those included that are being read."""

MOST_FOLDERS: Final = 1024
MOST_ALL_ENTRIES: Final = 4_000_000
READ_SECONDS: Final = 300.0
"""A refresh that takes longer has failed."""

PAUSE_SECONDS: Final = 600.0
"""A cache that is idle for so long is not refreshed."""

CLOSE_SECONDS: Final = 3600.0
"""A cache that is idle for so long is closed; its index stays on disk."""

ABSENT_SECONDS: Final = 60.0
"""A repository that is no cache, or cannot be read, is not asked again before."""

MOST_ABSENT: Final = 4096

_FOLDER: Final = "on-demand"
_SWEEP_SECONDS: Final = 10.0
_KEPT_BYTES: Final = MOST_DISK_BYTES - MOST_READ_AT_ONCE * MOST_TABLE_BYTES


class OnDemandCaches:
    """Opens caches, and closes them.

    Attributes:
        counters: of all of them together.
        disk_bytes: of all indexes on disk, when last measured.
    """

    def __init__(self, settings: OnDemandSettings, config: ProxyConfig, budget: PackBudget) -> None:
        self.counters = Counters()
        self.disk_bytes = 0
        self._settings = settings
        self._config = config
        self._budget = budget
        self._disk = OnDemandDisk(config.index_dir / _FOLDER)
        self._limits = ReadingLimits(
            lambda: TableBudget(MOST_TABLE_BYTES, MOST_ENTRIES),
            Turns(MOST_READ_AT_ONCE, self._make_space),
            READ_SECONDS,
        )
        self._entries: dict[str, Entry] = {}
        self._detached: set[Entry] = set()
        self._at: dict[bytes, OpenedCache] = {}
        self._absent: BoundedCache[str, float] = BoundedCache(MOST_ABSENT)
        self._starts = asyncio.Semaphore(MOST_READ_AT_ONCE)
        self._starting = 0
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._shrinking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def opened(self) -> tuple[OpenedCache, ...]:
        """Those that are open."""
        return tuple(entry.cache for entry in self._entries.values())

    @property
    def absent(self) -> int:
        """Number of prefixes that are remembered to lead to no cache."""
        return len(self._absent)

    def at(self, spelling: bytes) -> OpenedCache | None:
        """Return an open cache that is being refreshed, by a prefix in lower case."""
        return self._at.get(spelling)

    @asynccontextmanager
    async def using(self, prefix: str) -> AsyncIterator[OpenedCache | None]:
        """Open the cache with a prefix, and keep it open while the block runs; None if there is none."""
        reference = self._settings.allows(prefix)
        entry = await self._find(reference) if reference is not None else None
        if entry is None:
            yield None
            return
        with entry.used() as cache:
            yield cache

    def begin(self, prefix: str) -> bool:
        """Start to open the cache with a prefix, and tell whether it may be opened."""
        reference = self._settings.allows(prefix)
        if reference is not None and str(reference) not in self._entries:
            self._begin(reference)
        return reference is not None

    async def run(self) -> None:
        """Apply the rules for idle caches, for as long as this runs."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001  # the next sweep must come
                _log.exception("unexpected error")

    async def sweep(self) -> None:
        """Pause and close what is idle, and close what is denied by now."""
        now = time.monotonic()
        for entry in list(self._entries.values()):
            idle_seconds = 0.0 if entry.users else now - entry.cache.used_at
            if entry.is_denied:
                self._give_up(entry)
            elif idle_seconds >= CLOSE_SECONDS:
                self._detach(entry)
                self._run(self._close_unused(entry))
            elif idle_seconds >= PAUSE_SECONDS and not entry.cache.index.is_paused:
                self._unlist(entry)
                await entry.cache.index.pause()
        while sum(entry.cache.index.entries for entry in self._entries.values()) > MOST_ALL_ENTRIES:
            if not self._close_least_used():
                break

    async def close(self) -> None:
        """Close all of them."""
        await cancel_all([*self._opening.values(), *self._tasks])
        for entry in (*self._entries.values(), *self._detached):
            await entry.close()

    async def _find(self, reference: RegistryReference) -> Entry | None:
        name = str(reference)
        if name not in self._entries and (opening := self._begin(reference)) is not None:
            await asyncio.shield(opening)
        entry = self._entries.get(name)
        if entry is not None and entry.cache.index.is_paused:
            entry.cache.index.resume()
            self._list(entry)
        return entry

    def _begin(self, reference: RegistryReference) -> asyncio.Task[None] | None:
        """Open a cache once for all requests that want it; None if it was absent recently."""
        name = str(reference)
        if (self._absent.get(name) or 0) > time.monotonic():
            return None
        opening = self._opening.get(name)
        if opening is None:
            if len(self._opening) >= MOST_OPEN:
                _log.warning("caches are being opened already", extra={"fields": {"limit": MOST_OPEN}})
                return None
            opening = asyncio.create_task(self._open(name, reference), name=f"open {name}")
            self._opening[name] = opening
            opening.add_done_callback(retrieve)
            opening.add_done_callback(lambda _: self._opening.pop(name))
        return opening

    async def _open(self, name: str, reference: RegistryReference) -> None:
        async with self._starts:
            while len(self._entries) + self._starting >= MOST_OPEN:
                if not self._close_least_used():
                    _log.warning("all caches are in use", extra={"fields": {"limit": MOST_OPEN}})
                    return
            self._starting += 1
            try:
                entry = await self._start(name, reference)
            finally:
                self._starting -= 1
            self._entries[name] = entry
            self._list(entry)
        self._run(self._watch(entry))

    async def _start(self, name: str, reference: RegistryReference) -> Entry:
        folder = await asyncio.to_thread(self._disk.open, name)
        config = self._config
        repository = self._settings.open_anonymously(
            reference, must_be_public=self._settings.must_be_public(reference)
        )
        index = LiveIndex(
            repository,
            folder,
            (),
            config.index_ttl_seconds,
            self.counters,
            store_dir=config.store_dir,
            limits=self._limits,
            asks_first=True,
        )
        cache = OpenedCache(repository, index, self.counters, self._budget, prefix=prefix_of(reference))
        entry = Entry(name, cache, folder)
        try:
            await index.start()
        except BaseException:
            await entry.close()
            raise
        return entry

    async def _watch(self, entry: Entry) -> None:
        """Wait for the first attempt to read the index, and close what has none."""
        await entry.cache.index.wait_for_attempt()
        if entry.is_denied or entry.cache.index.catalog is None:
            self._give_up(entry)

    def _give_up(self, entry: Entry) -> None:
        """Close a cache that cannot be read, and do not ask again for a while."""
        if self._detach(entry):
            self._absent.put(entry.name, time.monotonic() + ABSENT_SECONDS)
            self._run(self._close_unused(entry, forgets=entry.is_denied))

    def _close_least_used(self) -> bool:
        entry = self._least_used()
        if entry is None:
            return False
        self._detach(entry)
        self._run(self._close_unused(entry))
        return True

    def _least_used(self) -> Entry | None:
        unused = (entry for entry in self._entries.values() if not entry.users)
        return min(unused, key=lambda entry: entry.cache.used_at, default=None)

    def _detach(self, entry: Entry) -> bool:
        """Let no further request use a cache; False if that is so already."""
        if self._entries.get(entry.name) is not entry:
            return False
        del self._entries[entry.name]
        self._detached.add(entry)
        self._unlist(entry)
        return True

    async def _close_unused(self, entry: Entry, *, forgets: bool = False) -> None:
        """Close a detached cache once no request uses it, and delete its index if it is to be forgotten."""
        await entry.unused.wait()
        await entry.close()
        self._detached.discard(entry)
        if forgets:
            await asyncio.to_thread(self._disk.remove, entry.folder.path.name)

    async def _make_space(self) -> None:
        """Leave room on the disk for what is about to be read: the least recently used go."""
        async with self._shrinking:
            entries = {entry.folder.path.name: entry for entry in self._entries.values()}
            sizes = await asyncio.to_thread(self._disk.shrink, entries.keys(), _KEPT_BYTES, MOST_FOLDERS)
            while sum(sizes.values()) > _KEPT_BYTES and (entry := self._least_used()) is not None:
                self._detach(entry)
                await self._close_unused(entry, forgets=True)
                sizes.pop(entry.folder.path.name, None)
            self.disk_bytes = sum(sizes.values())

    def _list(self, entry: Entry) -> None:
        prefix = entry.cache.prefix
        if prefix is not None:
            self._at |= dict.fromkeys((way.encode() for way in spellings(prefix)), entry.cache)

    def _unlist(self, entry: Entry) -> None:
        self._at = {way: cache for way, cache in self._at.items() if cache is not entry.cache}

    def _run(self, job: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(retrieve)

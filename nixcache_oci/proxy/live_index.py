"""The live index: the catalog, refreshed in the background.

Source: design section 2, "Index"; section 3, promises 1, 2 and 5.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing, found_or_none, read_listing
from nixcache_oci.cache.merged_keys import MergedKeys
from nixcache_oci.cache.parallel import cancel_all, run_in_slices
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_set import TableSet, read_tables
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import Error, FormatError
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.regression import RegressionWatch

_log = logging.getLogger(__name__)

FIRST_INDEX_SECONDS: Final = 5.0
_TAGS_SECONDS: Final = 3600.0
_FIRST_RETRY_SECONDS: Final = 2.0
# What was published last is requested next, and validating a narinfo takes longer than finding it. So some
# are validated ahead.
_PREVALIDATED: Final = 5_000
_PAUSE_SECONDS: Final = 0.005


@dataclass(slots=True)
class IndexState:
    """The state, for operators; times are seconds of ``time.time()``.

    Attributes:
        loaded_from_disk: whether the index of an earlier run was loaded.
        changed_at: when the catalog was last swapped, or None.
        checked_at: when the repository last confirmed it, or None.
        failure: why the last refresh failed; None if it succeeded.
        damaged: why tables are unreadable, by the tag of their segment.
        left_out: one line: what is over a limit and not read; None if nothing.
        public_key: the first recorded key that was seen.
        other_keys: other recorded keys; never followed silently.
    """

    loaded_from_disk: bool = False
    changed_at: float | None = None
    checked_at: float | None = None
    failure: Exception | None = None
    damaged: dict[str, str] = field(default_factory=dict)
    left_out: str | None = None
    public_key: str | None = None
    other_keys: tuple[str, ...] = ()

    @property
    def error(self) -> str | None:
        """One line: why the last refresh failed; None if it succeeded."""
        failure = self.failure
        return None if failure is None else str(failure) or type(failure).__name__


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """Limits of reading the tables of a cache.

    Attributes:
        new_budget: makes the budget of one refresh.
        turns: entered while tables are read.
        seconds: that one refresh may take; None for any, while it makes progress.
    """

    new_budget: Callable[[], TableBudget] = TableBudget
    turns: AbstractAsyncContextManager[object] = field(default_factory=contextlib.nullcontext)
    seconds: float | None = None


class LiveIndex:
    """Holds the catalog, and refreshes it every ``ttl_seconds``; for keys and store dir, see ``Catalog``.

    With ``asks_first``, what is on disk, or was here before a pause, is good for hits only, until the
    repository confirmed it.

    Attributes:
        catalog: None while there is no index.
        state: for ``/_status``.
        watch: detects a registry that shows an older state than before.
    """

    def __init__(
        self,
        repository: Repository,
        folder: IndexFolder,
        public_keys: Sequence[PublicKey],
        ttl_seconds: float,
        counters: Counters,
        *,
        store_dir: str | None = None,
        client_keys: tuple[PublicKey, ...] | None = None,
        limits: ReadingLimits | None = None,
        asks_first: bool = False,
    ) -> None:
        self.catalog: Catalog | None = None
        self.state = IndexState()
        self.watch = RegressionWatch(folder.rooted, counters)
        self._repository = repository
        self._folder = folder
        self._public_keys = tuple(public_keys)
        self._store_dir = store_dir
        self._counting_keys = client_keys
        self._limits = limits or ReadingLimits()
        self._asks_first = asks_first
        self._ttl_seconds = ttl_seconds
        self._counters = counters
        self._set = TableSet()
        self._saved: Listing | None = None
        self._tags_listed_at = -_TAGS_SECONDS
        self._refreshing = asyncio.Lock()
        self._attempted = asyncio.Event()
        self._deadline = 0.0
        self._task: asyncio.Task[None] | None = None
        self._prevalidating: asyncio.Task[None] | None = None

    @property
    def segments(self) -> int:
        """Number of segments served, a version 1 document included."""
        return len(self._set.listing.tables)

    @property
    def is_complete(self) -> bool:
        """Whether every segment whose tag was found has its manifest."""
        return self._set.listing.is_complete

    @property
    def entries(self) -> int:
        """Number of narinfos; 0 while there is no index."""
        return self.catalog.entries if self.catalog is not None else 0

    @property
    def is_absent(self) -> bool:
        """Whether the repository was read, and is no cache."""
        return self.catalog is not None and self._set.listing.is_absent

    @property
    def is_paused(self) -> bool:
        """Whether it is not refreshed."""
        return self._task is None

    async def start(self) -> None:
        """Load the last good index from disk, without network, and start refreshing."""
        saved = await asyncio.to_thread(self._folder.load, self._limits.new_budget())
        if saved is not None:
            listing, tables = saved
            self._set = TableSet.of(listing, tables)
            # If tables are missing, a miss means nothing: ask the repository first.
            if self._set.listing == listing:
                self._saved = listing
                await self._swap(self._set)
                self.state.loaded_from_disk = True
        self.resume()

    def resume(self) -> None:
        """Start refreshing, at once."""
        if self.is_paused:
            self._deadline = asyncio.get_running_loop().time() + FIRST_INDEX_SECONDS
            self._task = asyncio.create_task(self._run(), name="index refresh")

    async def pause(self) -> None:
        """Stop refreshing, and keep the catalog."""
        await self.close()
        self._task = None
        self._attempted.clear()

    async def close(self) -> None:
        """Cancel the background refresh."""
        await cancel_all(task for task in (self._task, self._prevalidating) if task is not None)

    async def current(self) -> Catalog | None:
        """Return the catalog; if none, wait for the first attempt, until 5 s after the start."""
        if (self.catalog is None or self._asks_first) and not self._attempted.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await self._attempted.wait()
        return self.catalog

    async def wait_for_attempt(self) -> None:
        """Wait until the repository was read, or could not be."""
        await self._attempted.wait()

    async def refresh(self, *, thoroughly: bool) -> None:
        """Read the repository now.

        Args:
            thoroughly: list tags even if ``cache-index`` did not change.

        Raises:
            Error: it could not be read; the catalog is unchanged.
        """
        async with self._refreshing:
            self._counters.refreshes += 1
            try:
                await self._refresh(thoroughly=thoroughly)
            except Exception as error:
                self._counters.refresh_failures += 1
                self.state.failure = error
                if self.catalog is None and self._set.tables:
                    await self._swap(self._set)
                raise
            else:
                self.state.failure = None
                self.state.checked_at = time.time()
            finally:
                self._attempted.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            pause = self._ttl_seconds
            try:
                await self.refresh(thoroughly=self.catalog is None)
                failures = 0
            except Exception as error:  # noqa: BLE001  # the next refresh must come
                failures += 1
                pause = min(pause, _FIRST_RETRY_SECONDS * 2 ** min(failures, 10))
                fields = {"error": str(error), "retry_seconds": round(pause), "kept": self.entries}
                is_expected = isinstance(error, (Error, OSError))
                _log.warning(
                    "index not refreshed", extra={"fields": fields}, exc_info=None if is_expected else error
                )
            # Jitter, so that proxies that started together do not refresh together.
            await asyncio.sleep(pause * random.uniform(0.9, 1))  # noqa: S311  # jitter

    async def _refresh(self, *, thoroughly: bool) -> None:
        await self.watch.open()
        if (
            thoroughly
            or self._is_look_due()
            or await found_or_none(self._repository.resolve(INDEX_TAG)) != self._set.listing.index
        ):
            asked_at = time.monotonic()
            look = await self._look()
            await asyncio.to_thread(self.watch.compare, self._set.listed, look.listed)
            self._report_problems(look)
            if self.catalog is None or look.listing != self._set.listing:
                await self._swap(look)
            self._tags_listed_at = asked_at
        else:
            self.watch.confirm()
        # Also without changes: the disk may have been full before.
        listing = self._set.listing
        if listing != self._saved and await asyncio.to_thread(self._folder.save, listing):
            self._saved = listing
        try:
            await self.watch.save()
        except OSError as error:
            self._folder.tell(error)

    def _report_problems(self, look: TableSet) -> None:
        """Warn once of damaged tables, and of what is over a limit, while that lasts."""
        damaged, before = dict(look.damaged), self.state.damaged
        if damaged and not damaged.keys() <= before.keys():
            tag, reason = next(iter(damaged.items()))
            fields: dict[str, object] = {"count": len(damaged), "first": tag, "reason": reason}
            _log.warning("tables cannot be had", extra={"fields": fields})
        if look.left_out is not None and self.state.left_out is None:
            _log.warning("over a limit", extra={"fields": {"reason": look.left_out, "kept": "the newest"}})
        self.state.damaged, self.state.left_out = damaged, look.left_out

    async def _look(self) -> TableSet:
        limits = self._limits
        async with asyncio.timeout(limits.seconds):
            listing = await read_listing(self._repository, self._set.listed)
            async with limits.turns:
                look = await read_tables(
                    self._repository, self._folder, listing, self._set.tables, limits.new_budget()
                )
        # A damaged table may have replaced one that is loaded, as in a merge: keep that.
        return look.beside(self._set) if look.damaged else look

    def _is_look_due(self) -> bool:
        return (
            time.monotonic() - self._tags_listed_at >= _TAGS_SECONDS
            or not self._set.listing.is_complete
            or bool(self.state.damaged)
        )

    async def _swap(self, tables: TableSet) -> None:
        if self._prevalidating is not None:
            self._prevalidating.cancel()  # two jobs in slices would hold requests up for twice as long
        former, pause = (self.catalog.keys, _PAUSE_SECONDS) if self.catalog else (MergedKeys(), 0)
        keys = await run_in_slices(former.updated(tables.tables.values()), pause)
        catalog = await asyncio.to_thread(
            tables.catalog,
            self._public_keys,
            store_dir=self._store_dir,
            client_keys=self._counting_keys,
            keys=keys,
        )
        recorded = catalog.recorded_keys
        first = await self._pin_key(recorded)
        self._set, self.catalog = tables, catalog
        ahead = run_in_slices(catalog.prevalidate(_PREVALIDATED), _PAUSE_SECONDS)
        self._prevalidating = asyncio.create_task(ahead, name="narinfos ahead")
        self.state.changed_at = time.time()
        self.state.public_key = first
        self.state.other_keys = tuple(key for key in recorded if first is not None and key != first)
        _log.info(
            "index ready",
            extra={
                "fields": {
                    "entries": catalog.entries,
                    "segments": self.segments,
                    "damaged": len(self.state.damaged),
                }
            },
        )
        if self.state.other_keys:
            _log.warning(
                "the cache records another public key than the one first seen",
                extra={"fields": {"first": first, "others": " ".join(self.state.other_keys[:4])}},
            )

    async def _pin_key(self, recorded: Sequence[str]) -> str | None:
        try:
            return await asyncio.to_thread(self._folder.pin_key, recorded)
        except (OSError, UnicodeDecodeError, FormatError) as error:
            # Without the pinned key, recorded ones are not followed.
            _log.warning("the pinned public key is unusable", extra={"fields": {"error": str(error)}})
            return self.state.public_key

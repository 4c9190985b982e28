"""The live index: the catalog that requests look into, refreshed behind them.

Source: design section 2, "Index", for what a reader reads and when; section 3, promises 1, 2 and 5.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing, read_listing
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_fetch import fetch_table, fetch_version1
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import DigestError, Error, FormatError, NotFoundError
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters

_log = logging.getLogger(__name__)

FIRST_INDEX_SECONDS: Final = 5.0
_TAGS_SECONDS: Final = 3600.0
_FIRST_RETRY_SECONDS: Final = 2.0
_PARALLEL_TABLES: Final = 4


@dataclass(slots=True)
class IndexState:
    """What an operator wants to know; times are seconds of ``time.time()``.

    Attributes:
        loaded_from_disk: whether the last good index of an earlier run was there.
        changed_at: when the catalog was last swapped, or None.
        checked_at: when the repository last confirmed that it is current, or None.
        error: one line: why the last refresh failed; None where it did not.
        damaged: tables that the cache lists and that cannot be had, with the reason.
        public_key: the first recorded key that was seen.
        other_keys: recorded keys that are not that one; never followed silently.
    """

    loaded_from_disk: bool = False
    changed_at: float | None = None
    checked_at: float | None = None
    error: str | None = None
    damaged: dict[str, str] = field(default_factory=dict)
    public_key: str | None = None
    other_keys: tuple[str, ...] = ()


class LiveIndex:
    """Holds the catalog.

    Args:
        repository: where the cache lies.
        folder: where its last good index lies.
        public_keys: what narinfos must be signed with; empty for any.
        ttl_seconds: between two looks at the repository.
        counters: of the proxy.

    Attributes:
        catalog: None while there is no index at all.
        state: for ``/_status``.
    """

    def __init__(
        self,
        repository: Repository,
        folder: IndexFolder,
        public_keys: Sequence[PublicKey],
        ttl_seconds: float,
        counters: Counters,
    ) -> None:
        self.catalog: Catalog | None = None
        self.state = IndexState()
        self._repository = repository
        self._folder = folder
        self._public_keys = tuple(public_keys)
        self._ttl_seconds = ttl_seconds
        self._counters = counters
        self._listing = Listing()
        self._tables: dict[Digest, TableFile] = {}
        self._tags_listed_at = -_TAGS_SECONDS
        self._refreshing = asyncio.Lock()
        self._attempted = asyncio.Event()
        self._deadline = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def segments(self) -> int:
        """How many segments the cache has, a version 1 document among them."""
        return len(self._listing.tables)

    async def start(self) -> None:
        """Take the last good index from disk, without any network, and begin to refresh."""
        self._deadline = asyncio.get_running_loop().time() + FIRST_INDEX_SECONDS
        saved = await asyncio.to_thread(self._folder.load)
        if saved is not None:
            self._listing, self._tables = saved
            self.state.loaded_from_disk = True
            await self._swap()
        self._task = asyncio.create_task(self._run(), name="index refresh")

    async def close(self) -> None:
        """Stop to refresh."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def current(self) -> Catalog | None:
        """Give the catalog; while there is none at all, wait for the first attempt, up to a deadline.

        The deadline counts from the start, once: no request waits longer than the first one.
        """
        if self.catalog is None and not self._attempted.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await self._attempted.wait()
        return self.catalog

    async def refresh(self, *, thoroughly: bool) -> None:
        """Look at the repository now.

        Args:
            thoroughly: list tags even where ``cache-index`` did not change.

        Raises:
            Error: it could not be read; the catalog stays as it was.
        """
        async with self._refreshing:
            self._counters.refreshes += 1
            try:
                await self._refresh(thoroughly=thoroughly)
            except (Error, OSError) as error:
                self._counters.refresh_failures += 1
                self.state.error = str(error)
                raise
            else:
                self.state.error = None
                self.state.checked_at = time.time()
            finally:
                self._attempted.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.refresh(thoroughly=self.catalog is None)
                failures = 0
                pause = self._ttl_seconds
            except (Error, OSError) as error:
                failures += 1
                pause = min(self._ttl_seconds, _FIRST_RETRY_SECONDS * 2 ** min(failures, 10))
                _log.warning(
                    "index not refreshed",
                    extra={
                        "fields": {"error": str(error), "retry_seconds": round(pause), "kept": self.entries}
                    },
                )
            # Jitter, so that a fleet that was started together does not ask together.
            await asyncio.sleep(pause * random.uniform(0.9, 1))  # noqa: S311  # jitter

    @property
    def entries(self) -> int:
        """How many narinfos are listed; 0 while there is no index."""
        return self.catalog.entries if self.catalog is not None else 0

    async def _refresh(self, *, thoroughly: bool) -> None:
        if not thoroughly and not self._is_look_due() and await self._index_digest() == self._listing.index:
            return
        asked_at = time.monotonic()
        listing = await read_listing(self._repository, self._listing.segments)
        damaged: dict[str, str] = {}
        jobs = [self._table_of(segment, damaged) for segment in listing.segments]
        if listing.version1 is not None:
            jobs.append(self._table_of_version1(listing.version1, damaged))
        tables = dict(table for table in await run_all(jobs, _PARALLEL_TABLES) if table is not None)
        is_changed = self.catalog is None or set(tables) != set(self._tables) or listing != self._listing
        self._listing, self._tables, self._tags_listed_at = listing, tables, asked_at
        self.state.damaged = damaged
        if is_changed:
            await self._swap()
            await asyncio.to_thread(self._folder.save, listing)

    def _is_look_due(self) -> bool:
        return (
            time.monotonic() - self._tags_listed_at >= _TAGS_SECONDS
            or not self._listing.is_complete
            or any(table not in self._tables for table in self._listing.tables)
        )

    async def _index_digest(self) -> Digest | None:
        try:
            return await self._repository.resolve(INDEX_TAG)
        except NotFoundError:
            return None

    async def _table_of(self, segment: Segment, damaged: dict[str, str]) -> tuple[Digest, TableFile] | None:
        file = await self._held(segment.table)
        try:
            return segment.table, file or await fetch_table(self._repository, self._folder, segment.table)
        except NotFoundError as error:
            if await self._is_collected(segment):
                return None
            damaged[str(segment.tag)] = str(error)
        except (DigestError, FormatError) as error:
            damaged[str(segment.tag)] = str(error)
        return None

    async def _table_of_version1(
        self, document: Digest, damaged: dict[str, str]
    ) -> tuple[Digest, TableFile] | None:
        file = await self._held(document)
        try:
            return document, file or await fetch_version1(self._repository, self._folder, document)
        except (NotFoundError, DigestError, FormatError) as error:
            damaged[INDEX_TAG] = str(error)
        return None

    async def _held(self, table: Digest) -> TableFile | None:
        return self._tables.get(table) or await asyncio.to_thread(self._folder.open_table, table)

    async def _is_collected(self, segment: Segment) -> bool:
        try:
            await self._repository.resolve(str(segment.manifest))
        except NotFoundError:
            return True
        return False

    async def _swap(self) -> None:
        tables = [
            CatalogTable(self._tables[segment.table], segment.condemned is not None, segment.created)
            for segment in self._listing.segments
            if segment.table in self._tables
        ]
        if self._listing.version1 in self._tables:
            tables.append(
                CatalogTable(self._tables[self._listing.version1], is_condemned=False, created=EPOCH)
            )
        catalog = Catalog.of(tables, self._public_keys)
        recorded = catalog.recorded_keys
        first = await asyncio.to_thread(self._folder.pin_key, recorded)
        self.catalog = catalog
        self.state.changed_at = time.time()
        self.state.public_key = first
        self.state.other_keys = tuple(key for key in recorded if key != first)
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
                extra={"fields": {"first": first, "others": " ".join(self.state.other_keys)}},
            )

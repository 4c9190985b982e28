"""The live index: the catalog that requests look into, refreshed behind them.

Source: design section 2, "Index", for what a reader reads and when; section 3, promises 1, 2 and 5.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        damaged: tables that the cache lists and that cannot be had, by the tag of their segment, with the
            reason.
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


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the repository gave.

    Attributes:
        listing: the segments whose tables are here.
        tables: those tables.
        damaged: see ``IndexState``.
    """

    listing: Listing
    tables: dict[Digest, TableFile]
    damaged: dict[str, str]


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
        self._saved: Listing | None = None
        self._tables: dict[Digest, TableFile] = {}
        self._tags_listed_at = -_TAGS_SECONDS
        self._refreshing = asyncio.Lock()
        self._attempted = asyncio.Event()
        self._deadline = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def segments(self) -> int:
        """How many segments are served, a version 1 document among them."""
        return len(self._listing.tables)

    @property
    def entries(self) -> int:
        """How many narinfos are listed; 0 while there is no index."""
        return self.catalog.entries if self.catalog is not None else 0

    async def start(self) -> None:
        """Take the last good index from disk, without any network, and begin to refresh."""
        self._deadline = asyncio.get_running_loop().time() + FIRST_INDEX_SECONDS
        saved = await asyncio.to_thread(self._folder.load)
        if saved is not None:
            listing, self._tables = saved
            self._listing = _restrict(listing, self._tables)
            # Where somebody removed tables, a miss means nothing: the repository may have its say first.
            if self._listing == listing:
                self._saved = listing
                await self._swap(listing, self._tables)
                self.state.loaded_from_disk = True
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
            OSError: the index folder could not be written; what could be read is served all the same.
        """
        async with self._refreshing:
            self._counters.refreshes += 1
            try:
                await self._refresh(thoroughly=thoroughly)
            except Exception as error:
                self._counters.refresh_failures += 1
                self.state.error = str(error) or type(error).__name__
                if self.catalog is None and self._tables:
                    await self._swap(self._listing, self._tables)
                raise
            else:
                self.state.error = None
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
            except Exception as error:  # noqa: BLE001  # whatever it is, the next refresh must come
                failures += 1
                pause = min(pause, _FIRST_RETRY_SECONDS * 2 ** min(failures, 10))
                fields = {"error": str(error), "retry_seconds": round(pause), "kept": self.entries}
                is_expected = isinstance(error, (Error, OSError))
                _log.warning(
                    "index not refreshed", extra={"fields": fields}, exc_info=None if is_expected else error
                )
            # Jitter, so that a fleet that was started together does not ask together.
            await asyncio.sleep(pause * random.uniform(0.9, 1))  # noqa: S311  # jitter

    async def _refresh(self, *, thoroughly: bool) -> None:
        if thoroughly or self._is_look_due() or await self._index_digest() != self._listing.index:
            asked_at = time.monotonic()
            look = await self._look()
            self.state.damaged = look.damaged
            if self.catalog is None or look.listing != self._listing:
                await self._swap(look.listing, look.tables)
            self._tags_listed_at = asked_at
        # Also after a look that found nothing new: the disk may have been full before.
        if self._listing != self._saved:
            listing = self._listing
            await asyncio.to_thread(self._folder.save, listing)
            self._saved = listing

    async def _look(self) -> _Look:
        listing = await read_listing(self._repository, self._listing.segments)
        damaged: dict[str, str] = {}
        jobs = [self._table_of(segment, damaged) for segment in listing.segments]
        if listing.version1 is not None:
            jobs.append(self._table_of_version1(listing.version1, damaged))
        tables = dict(table for table in await run_all(jobs, _PARALLEL_TABLES) if table is not None)
        listing = _restrict(listing, tables)
        if damaged:
            # What cannot be had may have replaced what is here, as a merge does: nothing is given up for it.
            listing = _add_to(listing, self._listing)
            tables = {**self._tables, **tables}
            tables = {table: tables[table] for table in listing.tables}
        return _Look(listing, tables, damaged)

    def _is_look_due(self) -> bool:
        return (
            time.monotonic() - self._tags_listed_at >= _TAGS_SECONDS
            or not self._listing.is_complete
            or bool(self.state.damaged)
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

    async def _swap(self, listing: Listing, tables: dict[Digest, TableFile]) -> None:
        listed = [
            CatalogTable(tables[segment.table], segment.condemned is not None, segment.created)
            for segment in listing.segments
        ]
        if listing.version1 is not None:
            listed.append(CatalogTable(tables[listing.version1], is_condemned=False, created=EPOCH))
        catalog = Catalog.of(listed, self._public_keys)
        recorded = catalog.recorded_keys
        first = await self._pin_key(recorded)
        self._listing, self._tables, self.catalog = listing, tables, catalog
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
                extra={"fields": {"first": first, "others": " ".join(self.state.other_keys)}},
            )

    async def _pin_key(self, recorded: Sequence[str]) -> str | None:
        try:
            return await asyncio.to_thread(self._folder.pin_key, recorded)
        except (OSError, UnicodeDecodeError) as error:
            # A key that could not be compared is not followed.
            _log.warning("the pinned public key is unusable", extra={"fields": {"error": str(error)}})
            return self.state.public_key


def _restrict(listing: Listing, tables: Mapping[Digest, TableFile]) -> Listing:
    """Leave out what has no table."""
    return replace(
        listing,
        segments=tuple(segment for segment in listing.segments if segment.table in tables),
        version1=listing.version1 if listing.version1 in tables else None,
    )


def _add_to(listing: Listing, former: Listing) -> Listing:
    """Keep what was listed before beside what is listed now."""
    listed = {segment.manifest for segment in listing.segments}
    kept = (segment for segment in former.segments if segment.manifest not in listed)
    return replace(listing, segments=(*listing.segments, *kept), version1=listing.version1 or former.version1)

"""All tables of a listing: from memory, from disk, and the rest from the repository.

What a merged segment took in is not read, unless the merged one's table is unreadable. If both a table and
its manifest are 404, gc collected the segment meanwhile, and it is dropped; any other unreadable table is
reported as damaged. Source: design section 2, "Segment" and "Index".
"""

import asyncio
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Self

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import MAX_SEGMENTS, Listing, newest_first
from nixcache_oci.cache.merged_keys import MergedKeys
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import SILENT, Progress, Stage
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_fetch import fetch_table, fetch_version1
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.errors import DigestError, FormatError, LimitError, NotFoundError, RegistryError
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# Of small ones the wait is for the registry: two connections, and half a MiB at most. Of large ones it is for
# this machine.
_PARALLEL_TABLES: Final = 24
_FILES_OF_A_FETCH: Final = 16  # of the process limit; most of them are for others
_PARALLEL_LARGE: Final = 4
_MOST_SMALL_PATHS: Final = 1000


@dataclass(frozen=True, slots=True)
class TableSet:
    """The tables of a listing.

    Attributes:
        listing: the segments whose tables were read.
        tables: by digest of the table or version 1 document.
        damaged: tag of each segment with an unreadable table, and why.
        left_out: one line: how many segments, the oldest, are over which limit; None if none. They are not
            damaged.
        taken_in: other listed segments, whose tables are not read, because those of merged ones have it all.
    """

    listing: Listing = field(default_factory=Listing)
    tables: Mapping[Digest, TableFile] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    left_out: str | None = None
    taken_in: tuple[Segment, ...] = ()

    @property
    def listed(self) -> tuple[Segment, ...]:
        """All segments that are read or taken in."""
        return (*self.listing.segments, *self.taken_in)

    @classmethod
    def of(
        cls,
        listing: Listing,
        tables: Mapping[Digest, TableFile],
        damaged: Mapping[str, str] | None = None,
        left_out: str | None = None,
    ) -> Self:
        """Drop segments without a table from a listing."""
        segments = tuple(segment for segment in listing.segments if segment.table in tables)
        version1 = listing.version1 if listing.version1 in tables else None
        return cls(replace(listing, segments=segments, version1=version1), tables, damaged or {}, left_out)

    def beside(self, former: Self) -> Self:
        """Add what was listed before to what is listed now, within the limits."""
        budget = TableBudget()
        tables: dict[Digest, TableFile] = {}

        def has_space(table: Digest, file: TableFile) -> bool:
            try:
                if table not in tables:
                    budget.inflate(file.size)
                    budget.open(file.count)
            except LimitError:
                return False
            tables[table] = file
            return True

        for table, file in self.tables.items():
            has_space(table, file)
        version1 = self.listing.version1
        if version1 is None and former.listing.version1 is not None:
            kept_document = former.listing.version1
            version1 = kept_document if has_space(kept_document, former.tables[kept_document]) else None
        listed = {segment.manifest for segment in self.listed}
        gone = (segment for segment in former.listing.segments if segment.manifest not in listed)
        space = max(0, MAX_SEGMENTS - len(self.listing.segments))
        kept = [
            segment
            for segment in newest_first(gone)[:space]
            if has_space(segment.table, former.tables[segment.table])
        ]
        segments = tuple(one for one in self.listing.segments if one.table in tables)
        listing = replace(self.listing, segments=(*segments, *kept), version1=version1)
        return replace(self, listing=listing, tables=tables)

    @property
    def recorded_keys(self) -> tuple[PublicKey, ...]:
        """The keys that the cache says it is signed with, as far as they can be read; the oldest first."""
        keys = []
        for text in self.catalog((), keys=MergedKeys()).recorded_keys:  # no look-ups, so no keys
            try:
                keys.append(PublicKey.parse(text))
            except FormatError:
                continue  # shown by nobody, trusted by nobody
        return tuple(keys)

    def catalog(
        self,
        public_keys: Sequence[PublicKey],
        *,
        store_dir: str | None = None,
        with_condemned: bool = True,
        client_keys: tuple[PublicKey, ...] | None = None,
        keys: MergedKeys | None = None,
    ) -> Catalog:
        """Build the catalog; see ``Catalog``.

        Args:
            public_keys: for verification.
            store_dir: required.
            with_condemned: False drops segments that gc marked as dead: a publisher must not count on them.
            client_keys: see ``Catalog``.
            keys: of all these tables; None to merge them now.
        """
        listed = [
            CatalogTable(self.tables[segment.table], segment.condemned is not None, segment.created)
            for segment in self.listing.segments
            if with_condemned or segment.condemned is None
        ]
        if self.listing.version1 is not None:
            document = self.tables[self.listing.version1]
            listed.append(CatalogTable(document, is_condemned=False, created=EPOCH))
        return Catalog.of(listed, public_keys, store_dir, client_keys, keys)


async def read_tables(
    repository: Repository,
    folder: IndexFolder,
    listing: Listing,
    held: Mapping[Digest, TableFile] | None = None,
    budget: TableBudget | None = None,
    progress: Progress = SILENT,
    *,
    with_taken_in: bool = False,
) -> TableSet:
    """Read every missing table of a listing, the newest first, within the budget.

    Args:
        repository: of the cache.
        folder: for tables.
        listing: that names them.
        held: tables that are open already.
        budget: of all tables.
        progress: reports how many are read.
        with_taken_in: also what merged segments took in.

    Raises:
        RegistryError: the repository could not answer; what was fetched stays on disk.
    """
    held = held or {}
    await asyncio.to_thread(folder.drop_unused_tables, (*held, *listing.tables))
    reader = _TableReader(
        repository, folder, listing, held, budget or TableBudget(), with_taken_in=with_taken_in
    )
    parallel = _parallel_tables()
    # Whatever walks all segments is done on threads: there may be thousands, and requests are answered.
    while unread := await asyncio.to_thread(reader.unread):
        with progress.stage("reading the cache", "table", len(unread)) as stage:
            waiting = iter(unread.items())
            await run_all((reader.read(waiting, stage) for _ in range(parallel)), parallel)
    return await asyncio.to_thread(reader.table_set)


def _parallel_tables() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _PARALLEL_TABLES
    return max(1, min(_PARALLEL_TABLES, soft // _FILES_OF_A_FETCH))


class _TableReader:
    """Reads the tables of a listing concurrently; for its arguments, see ``read_tables``."""

    def __init__(
        self,
        repository: Repository,
        folder: IndexFolder,
        listing: Listing,
        held: Mapping[Digest, TableFile],
        budget: TableBudget,
        *,
        with_taken_in: bool,
    ) -> None:
        self._listing = self._wanted = listing
        self._with_taken_in = with_taken_in
        self._tables: dict[Digest, TableFile] = {}
        self._damaged: dict[str, str] = {}
        self._looked_at: set[Digest] = set()
        self._repository = repository
        self._folder = folder
        self._held = held
        self._budget = budget
        self._over: dict[Digest, str] = {}
        self._turns = asyncio.Semaphore(_PARALLEL_LARGE)

    def unread(self) -> dict[Digest, list[Segment]]:
        """Return what to read next: what is newer than all that is held, then the rest, then nothing.

        What is held is taken in between, so that the budget is spent on the newest. What a merged segment
        took in is read once that one is unreadable.
        """
        if not self._with_taken_in:
            unreadable = self._looked_at.difference(self._tables)
            self._wanted = self._listing.without_taken_in(unreadable)
        unread: dict[Digest, list[Segment]] = {}
        is_any_taken = False
        for table, segments in self._wanted.tables_newest_first().items():
            if table in self._looked_at:
                continue
            file = self._held.get(table)
            if file is None:
                unread[table] = segments
                continue
            if unread and not is_any_taken:
                break
            is_any_taken = True
            self._looked_at.add(table)
            try:
                self._take(table, file)
            except LimitError as error:
                self._over[table] = str(error)
        return unread

    async def read(self, waiting: Iterator[tuple[Digest, Sequence[Segment]]], stage: Stage) -> None:
        """Read one table after another; a table without segments is a version 1 document."""
        for table, segments in waiting:
            self._looked_at.add(table)
            try:
                await self._read(table, segments, stage)
            except LimitError as error:
                self._over[table] = str(error)
            except NotFoundError as error:
                for segment in segments:
                    if await has_manifest(self._repository, segment.manifest):
                        self._damaged[str(segment.tag)] = str(error)
                if not segments:
                    self._damaged[INDEX_TAG] = str(error)
            except (DigestError, FormatError, RegistryError, OSError) as error:
                if not isinstance(error, OSError):  # no space for it
                    await raise_unless_damage(self._repository, error)
                for tag in [str(segment.tag) for segment in segments] or [INDEX_TAG]:
                    self._damaged[tag] = str(error)
            stage.advance(1)

    def table_set(self) -> TableSet:
        """Return what was read."""
        wanted = {segment.manifest for segment in self._wanted.segments}
        return replace(
            TableSet.of(self._wanted, self._tables, self._damaged, self._left_out()),
            taken_in=tuple(one for one in self._listing.segments if one.manifest not in wanted),
        )

    def _left_out(self) -> str | None:
        """Describe what was not read; see ``TableSet``."""
        listing = self._listing
        count = listing.left_out + sum(segment.table in self._over for segment in listing.segments)
        reasons = [*self._over.values()][:1] or [f"a cache is read up to {MAX_SEGMENTS} segments"]
        total = len(listing.segments) + listing.left_out
        return f"{count} of {counted(total, 'segment')} left out, the oldest: {reasons[0]}" if count else None

    def _take(self, table: Digest, file: TableFile) -> None:
        self._budget.inflate(file.size)
        self._budget.open(file.count)
        self._tables[table] = file

    async def _read(self, table: Digest, segments: Sequence[Segment], stage: Stage) -> None:
        file = await asyncio.to_thread(self._folder.open_table, table)
        if file is not None:
            self._take(table, file)
        else:
            self._tables[table] = await self._fetch(table, segments, stage)

    async def _fetch(self, table: Digest, segments: Sequence[Segment], stage: Stage) -> TableFile:
        if not segments:
            return await fetch_version1(self._repository, self._folder, table, self._budget, stage)
        fetch = partial(fetch_table, self._repository, self._folder, table, self._budget, stage)
        if segments[0].paths <= _MOST_SMALL_PATHS:
            return await fetch(self._turns)
        async with self._turns:  # before it is asked for: no registry waits for it to be read
            return await fetch()

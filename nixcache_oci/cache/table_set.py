"""All tables of a listing: those held already, those on disk, and the rest out of the repository.

A table that is 404 whose manifest is 404 too was collected meanwhile, and its segment is dropped; any other
table that cannot be had is damage, and named. Source: design section 2, "Index".
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_fetch import fetch_table, fetch_version1
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.oci.digest import Digest

# Tables are inflated on threads, and each holds one piece of its blob.
_PARALLEL_TABLES: Final = 4


@dataclass(frozen=True, slots=True)
class TableSet:
    """The tables of a listing.

    Attributes:
        listing: the segments whose tables are here.
        tables: each of these, by the digest of the table or version 1 document.
        damaged: tag of each segment whose table cannot be had, and why.
    """

    listing: Listing = field(default_factory=Listing)
    tables: Mapping[Digest, TableFile] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, listing: Listing, tables: Mapping[Digest, TableFile], damaged: Mapping[str, str] | None = None
    ) -> Self:
        """Leave out of a listing what has no table."""
        segments = tuple(segment for segment in listing.segments if segment.table in tables)
        version1 = listing.version1 if listing.version1 in tables else None
        return cls(replace(listing, segments=segments, version1=version1), tables, damaged or {})

    def beside(self, former: Self) -> Self:
        """Keep what was listed before beside what is listed now."""
        listed = {segment.manifest for segment in self.listing.segments}
        kept = (segment for segment in former.listing.segments if segment.manifest not in listed)
        listing = replace(
            self.listing,
            segments=(*self.listing.segments, *kept),
            version1=self.listing.version1 or former.listing.version1,
        )
        tables = {**former.tables, **self.tables}
        return replace(self, listing=listing, tables={table: tables[table] for table in listing.tables})

    def catalog(self, public_keys: Sequence[PublicKey], *, with_condemned: bool = True) -> Catalog:
        """Put the tables together for look-ups.

        Args:
            public_keys: what narinfos have to be signed with; empty for any.
            with_condemned: False leaves out segments that gc found dead: a publisher must not count on them.
        """
        listed = [
            CatalogTable(self.tables[segment.table], segment.condemned is not None, segment.created)
            for segment in self.listing.segments
            if with_condemned or segment.condemned is None
        ]
        if self.listing.version1 is not None:
            document = self.tables[self.listing.version1]
            listed.append(CatalogTable(document, is_condemned=False, created=EPOCH))
        return Catalog.of(listed, public_keys)


async def read_tables(
    repository: Repository,
    folder: IndexFolder,
    listing: Listing,
    held: Mapping[Digest, TableFile] | None = None,
) -> TableSet:
    """Read every table of a listing that is not here yet.

    Args:
        repository: where the cache lies.
        folder: where tables are kept.
        listing: what they belong to.
        held: tables that are open already.

    Raises:
        RegistryError: the repository could not answer; what was fetched until then lies on disk.
        OSError: the folder could not be written.
    """
    reading = _Reading(repository, folder, held or {})
    jobs = [reading.table_of(segment) for segment in listing.segments]
    if listing.version1 is not None:
        jobs.append(reading.table_of_version1(listing.version1))
    found = await run_all(jobs, _PARALLEL_TABLES)
    return TableSet.of(listing, dict(one for one in found if one is not None), reading.damaged)


class _Reading:
    """One look at all tables; ``damaged`` collects what it finds wrong."""

    def __init__(self, repository: Repository, folder: IndexFolder, held: Mapping[Digest, TableFile]) -> None:
        self.damaged: dict[str, str] = {}
        self._repository = repository
        self._folder = folder
        self._held = held

    async def table_of(self, segment: Segment) -> tuple[Digest, TableFile] | None:
        file = await self._find(segment.table)
        try:
            return segment.table, file or await fetch_table(self._repository, self._folder, segment.table)
        except NotFoundError as error:
            if await has_manifest(self._repository, segment.manifest):
                self.damaged[str(segment.tag)] = str(error)
        except (DigestError, FormatError, RegistryError) as error:
            await raise_unless_damage(self._repository, error)
            self.damaged[str(segment.tag)] = str(error)
        return None

    async def table_of_version1(self, document: Digest) -> tuple[Digest, TableFile] | None:
        file = await self._find(document)
        try:
            return document, file or await fetch_version1(self._repository, self._folder, document)
        except (DigestError, FormatError, RegistryError) as error:
            await raise_unless_damage(self._repository, error)
            self.damaged[INDEX_TAG] = str(error)
        return None

    async def _find(self, table: Digest) -> TableFile | None:
        return self._held.get(table) or await asyncio.to_thread(self._folder.open_table, table)

"""What a publish may rely on: the contents of the cache, and what the upstreams have."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing, find_missing_manifests, read_union
from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.writer import describe_blobs
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import has_blob
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, FormatError, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

_PARALLEL_REQUESTS: Final = 16


@dataclass(frozen=True, slots=True)
class Contents:
    """What a cache lists, except what gc marked as dead."""

    catalog: Catalog  # of all narinfos
    # what publishes left; None where they cannot all be read, or the index does not list all that there is:
    # then something has to be written
    records: tuple[PublishRecord, ...] | None = None
    recorded_keys: tuple[PublicKey, ...] = ()  # also of what gc found dead

    def find(self, hash_part: HashPart) -> NarInfo | None:
        """Look up a narinfo."""
        text = self.catalog.find(hash_part)
        return NarInfo.parse(text) if text is not None else None

    def find_missing(self, wanted: Iterable[PathInfo]) -> list[PathInfo]:
        """Return what is not listed."""
        return [info for info in wanted if self.catalog.find(info.store_path.hash_part) is None]


class ContentsReader:
    """Reads what a cache lists; warns of unreadable tables."""

    def __init__(self, repository: Repository, folder: IndexFolder, progress: Progress) -> None:
        self._repository = repository
        self._folder = folder
        self._progress = progress

    async def read(self) -> Contents:
        """Read what it lists now.

        Raises:
            RegistryError: the repository could not answer.
            FormatError: the index is not one of a Nix cache.
        """
        union = await read_union(self._repository)
        # A segment without its manifest has lost its blobs, or will: what it lists is sent again.
        missing = await find_missing_manifests(self._repository, union.untagged)
        listing = union.listing({segment.manifest for segment in missing})
        contents = await self.read_tables(listing)
        listed = {descriptor.digest for descriptor in union.index.image_index.manifests}
        is_whole = union.is_complete and listed == {segment.manifest for segment in listing.segments}
        return contents if is_whole else replace(contents, records=None)

    async def read_tables(self, listing: Listing, held: Mapping[Digest, TableFile] | None = None) -> Contents:
        """Read the tables of a listing, unless held or on disk; RegistryError if the repository fails."""
        tables = await read_tables(self._repository, self._folder, listing, held, progress=self._progress)
        fields = {"repository": self._repository.name, "segments": len(tables.listing.segments)}
        _log.info("cache read", extra={"fields": fields})
        for tag, reason in tables.damaged.items():
            self._progress.warn(f"{tag} cannot be read and is ignored: {reason}")
        if tables.left_out is not None:
            self._progress.warn(tables.left_out)
        if not tables.damaged:
            # Deletes tables that are no longer listed.
            await asyncio.to_thread(self._folder.save, tables.listing)
        catalog = tables.catalog((), with_condemned=False)
        if tables.damaged or tables.left_out is not None or listing.version1 is not None:
            return Contents(catalog, None, tables.recorded_keys)
        records = await asyncio.to_thread(_read_records, catalog)
        return Contents(catalog, records, tables.recorded_keys)

    async def find_missing_blobs(self, blobs: Iterable[Descriptor]) -> set[Digest]:
        """Return the blobs of which not even a byte can be read."""

        async def find(blob: Descriptor) -> Digest | None:
            return None if await has_blob(self._repository, blob) else blob.digest

        answers = await run_all((find(blob) for blob in blobs), _PARALLEL_REQUESTS)
        return {digest for digest in answers if digest is not None}

    async def describe_listed(self, narinfos: Iterable[NarInfo]) -> dict[Digest, Descriptor]:
        """Describe blobs of listed narinfos; asks for sizes that the narinfos do not tell."""
        known: dict[Digest, Descriptor] = {}
        unknown: list[NarInfo] = []
        for one in narinfos:
            url = NarUrl.parse(one.url)
            if url.offset is None and one.file_size is not None:
                known[url.blob] = describe_nar(url.blob, one.compression, one.file_size)
            else:
                unknown.append(one)
        return known | await describe_blobs(self._repository, unknown)


async def find_missing_upstream(
    upstreams: Upstreams, asked: Mapping[HashPart, object], progress: Progress
) -> set[HashPart]:
    """Find what no upstream has; ``asked`` names each path for people. Error if none of them could say."""

    async def is_missing(part: HashPart) -> bool:
        try:
            return await upstreams.find(part) is None
        except UpstreamError as error:
            raise Error(f"no upstream could say whether it has {asked[part]}: {error}") from None

    with progress.stage("looking upstream", "path", len(asked)) as stage:
        answers = await run_all(map(is_missing, asked), _PARALLEL_REQUESTS, stage)
    return {part for part, is_gone in zip(asked, answers, strict=True) if is_gone}


def _read_records(catalog: Catalog) -> tuple[PublishRecord, ...] | None:
    try:
        records = [record for table in catalog.tables for record in table.file.records()]
    except FormatError:
        return None
    return tuple(record for record in records if isinstance(record, PublishRecord))

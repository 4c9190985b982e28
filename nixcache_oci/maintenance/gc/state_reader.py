"""Reads every segment that the index lists or a tag names, completely or not at all.

A decision based on half of a cache would condemn what the other half needs: anything that cannot be read ends
gc here, before it writes anything. Source: design section 5, promise 2.
"""

import asyncio
import tempfile
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from heapq import nsmallest
from pathlib import Path
from typing import Any, Final

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.former import VersionTag
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import MAX_SEGMENTS, found_or_none, read_union, require_cache
from nixcache_oci.cache.parallel import run_all, run_in_thread
from nixcache_oci.cache.progress import SILENT, Progress, Stage
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_fetch import fetch_table
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.clients.repository import Repository, UntaggedVersion
from nixcache_oci.errors import DigestError, Error, FormatError, LimitError, NotFoundError, RegistryError
from nixcache_oci.maintenance.gc.former_reader import read_untagged
from nixcache_oci.maintenance.gc.state import (
    GcState,
    GcTable,
    PathNumbers,
    Place,
    StoredSegment,
    TableRows,
)
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.wording import counted

_PARALLEL_REQUESTS: Final = 8
_LARGE_TABLE_BYTES: Final = 1024 * 1024  # compressed; larger tables are read one at a time


async def read_state(
    repository: Repository,
    now: datetime,
    untagged: Iterable[UntaggedVersion] = (),
    progress: Progress = SILENT,
) -> GcState:
    """Read the whole state of a cache, as of ``now`` or later.

    Among the untagged manifests, former versions of the index are looked for.

    Raises:
        RegistryError: the repository could not answer, or lacks what it says it has.
        DigestError: a table does not match its digest.
        FormatError: the index, or the table of an uncondemned segment, cannot be read.
        LimitError: the cache exceeds a limit.
    """
    listed_tags = await _list_tags(repository)
    tags = _parse(listed_tags)
    union = await read_union(repository)
    require_cache(repository, union.listing())
    if union.version1 is not None:
        raise FormatError(
            f"{repository.name}: its index is of version 1, which gc cannot handle: publish to it first,"
            " which converts its entries"
        )
    if union.unread:
        raise LimitError(
            f"{repository.name}: {counted(union.unread, 'segment tag')} over the limit that no index lists;"
            " delete those that are not yours"
        )
    if not union.is_complete:
        raise RegistryError(
            f"{repository.name}: it lists the tag {union.orphans[0]}, but has no manifest for it; if this"
            " persists, 'verify --repair' removes the tag",
            is_temporary=True,
        )
    indexed = {descriptor.digest for descriptor in union.index.image_index.manifests}
    listed = {segment.manifest for segment in union.index.segments}
    former = (tag for tag in tags if tag.manifest not in listed and tag.created < union.index.watermark)
    # The rest is left to later runs, when these are gone.
    unlisted = nsmallest(MAX_SEGMENTS, former, key=lambda tag: (tag.created, tag.manifest))
    # What is mapped outlives the folder, which is needed only while reading.
    count = len(union.index.segments) + len(unlisted)
    with _temporary_folder() as folder, progress.stage("reading the cache", "segment", count) as stage:
        reader = _SegmentReader(repository, IndexFolder(folder, repository.name), stage)
        jobs: list[Coroutine[Any, Any, StoredSegment | None]] = [
            reader.read_listed(segment, Place.INDEX if segment.manifest in indexed else Place.TAG)
            for segment in union.index.segments
        ]
        jobs += [reader.read_unlisted(tag) for tag in unlisted]
        read = await run_all(jobs, _PARALLEL_REQUESTS, stage)
    candidates = [version for version in untagged if version.digest != union.digest]
    versions = [tag for tag in map(VersionTag.parse, listed_tags) if tag is not None]
    return GcState(
        now,
        tuple(segment for segment in read if segment is not None),
        await read_untagged(repository, candidates, progress),
        frozenset(tags),
        union.index,
        tuple(tag for tag in versions if tag.manifest != union.digest),
        tuple(tag for tag in listed_tags if _is_of_others(tag)),
    )


async def list_segment_tags(repository: Repository) -> set[SegmentTag]:
    """List the tags of segments; RegistryError if the repository could not answer."""
    return _parse(await _list_tags(repository))


async def _list_tags(repository: Repository) -> list[str]:
    """List all tags; none if the repository itself says that it does not exist."""
    return await found_or_none(repository.list_tags()) or []


def _is_of_others(tag: str) -> bool:
    return tag != INDEX_TAG and SegmentTag.parse(tag) is None and VersionTag.parse(tag) is None


def _parse(tags: Iterable[str]) -> set[SegmentTag]:
    return {tag for tag in map(SegmentTag.parse, tags) if tag is not None}


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="nixcache-oci-") as folder:
            yield Path(folder)
    except OSError as error:
        place = error.filename or tempfile.gettempdir()
        raise Error(f"{place}: tables cannot be kept there: {error.strerror}; set TMPDIR") from None


class _SegmentReader:
    """Reads segments; their tables go through the disk, large ones one at a time."""

    def __init__(self, repository: Repository, folder: IndexFolder, stage: Stage) -> None:
        self._stage = stage
        self._repository = repository
        self._folder = folder
        self._budget = TableBudget()
        self._numbers = PathNumbers()
        self._large = asyncio.Lock()
        self._parsing = asyncio.Lock()

    async def read_listed(self, segment: Segment, place: Place) -> StoredSegment:
        try:
            stored = await self._repository.get_manifest(str(segment.manifest))
        except NotFoundError as error:
            if segment.condemned is not None:
                return StoredSegment(segment, place)
            raise RegistryError(
                f"{self._repository.name}: the manifest of {segment.tag} is gone, although no gc condemned it"
                f" ({error}); 'verify --repair' removes it from the index"
            ) from None
        return await self._read_segment(segment, place, stored.content)

    async def read_unlisted(self, tag: SegmentTag) -> StoredSegment | None:
        """Read a segment that an earlier gc unlisted; None if it is gone, or no segment."""
        try:
            stored = await self._repository.get_manifest(str(tag.manifest))
        except NotFoundError:
            return None
        try:
            segment = Segment.from_manifest(stored.content)
        except FormatError:
            return None
        return await self._read_segment(segment, Place.UNLISTED, stored.content)

    async def _read_segment(self, segment: Segment, place: Place, content: bytes) -> StoredSegment:
        layers: tuple[Descriptor, ...] = ()
        try:
            layers = Manifest.parse(content).layers
            pushed = Segment.from_manifest(content)
            _check_same_table(segment, pushed)
            # A writer that does not know the annotation listed the segment without it.
            segment = replace(segment, merges=pushed.merges)
            table = await self._read_table(segment.table, layers)
        except LimitError as error:
            raise LimitError(f"{self._repository.name}: {error}; gc needs all of them") from None
        except (DigestError, FormatError, RegistryError) as error:
            await raise_unless_damage(self._repository, error)
            if segment.condemned is not None or place is Place.UNLISTED:
                return StoredSegment(segment, place, layers)
            raise type(error)(
                f"{self._repository.name}: {segment.tag} cannot be read: {error}; 'verify --repair' repairs"
                " it, or removes it from the index"
            ) from None
        return StoredSegment(segment, place, layers, table)

    async def _read_table(self, digest: Digest, layers: Sequence[Descriptor]) -> GcTable:
        sizes = {layer.digest: layer.size for layer in layers}
        # The pages of a file that was just written also count as memory.
        async with self._large if sizes.get(digest, 0) > _LARGE_TABLE_BYTES else nullcontext():
            file = await fetch_table(self._repository, self._folder, digest, self._budget, self._stage)
            async with self._parsing:
                return await run_in_thread(_read, file, sizes, self._numbers)


def _read(file: TableFile, blobs: Mapping[Digest, int], numbers: PathNumbers) -> GcTable:
    rows = TableRows.of(file.narinfos(), blobs, numbers)
    table = GcTable(file.header, file.records(), file.size, rows, file.narinfos)
    file.release()
    return table


def _check_same_table(listed: Segment, manifest: Segment) -> None:
    if listed.table != manifest.table:
        raise FormatError(f"the index names table {listed.table}, but its manifest {manifest.table}")

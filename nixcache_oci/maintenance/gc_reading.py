"""What gc reads: every segment that the index lists or a tag names, whole, or nothing at all.

Deciding on half of a cache would condemn what the other half needs: anything that cannot be read ends gc
here, before it has written a byte. Source: design section 5, promise 2.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from datetime import datetime
from heapq import nsmallest
from typing import Any, Final

import zstandard

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.listing import MAX_SEGMENTS, read_union
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, parse_table
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.clients.removal import UntaggedVersion
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import TABLE_HEAD_SECONDS, read_blob
from nixcache_oci.errors import DigestError, FormatError, LimitError, NotFoundError, RegistryError
from nixcache_oci.maintenance.gc_state import FormerIndex, GcState, Place, StoredSegment
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

# A table is parsed on a thread, and each holds one in memory.
_PARALLEL_REQUESTS: Final = 8


async def read_state(
    repository: Repository, now: datetime, untagged: Iterable[UntaggedVersion] = ()
) -> GcState:
    """Read all that a repository holds.

    Args:
        repository: where the cache lies.
        now: the time, asked for before this.
        untagged: manifests without a tag; those that are former versions of the index become part of it.

    Raises:
        RegistryError: the repository could not answer, or misses what it says it has.
        DigestError: a table is not what its digest says.
        FormatError: the index, or the table of a segment that is not condemned, cannot be read.
    """
    tags = await _list_tags(repository)
    union = await read_union(repository)
    if union.version1 is not None:
        raise FormatError(
            f"{repository.name}: its index is of version 1, which gc does not count: publish to it first,"
            " for a publish takes its entries over"
        )
    if union.unread:
        raise LimitError(
            f"{repository.name}: {union.unread} tags of segments that no index lists are more than are read;"
            " delete those that nobody published"
        )
    if not union.is_complete:
        raise RegistryError(
            f"{repository.name}: it lists a segment's tag, and has no manifest for it; if this stays so,"
            " delete that tag",
            is_temporary=True,
        )
    budget = TableBudget()
    indexed = {descriptor.digest for descriptor in union.index.image_index.manifests}
    counted = {segment.manifest for segment in union.index.segments}
    jobs: list[Coroutine[Any, Any, StoredSegment | None]] = [
        _read_listed(repository, budget, segment, Place.INDEX if segment.manifest in indexed else Place.TAG)
        for segment in union.index.segments
    ]
    former = (tag for tag in tags if tag.manifest not in counted and tag.created < union.index.watermark)
    # The rest has its turn in later runs, when these are gone.
    oldest = nsmallest(MAX_SEGMENTS, former, key=lambda tag: (tag.created, tag.manifest))
    jobs += [_read_unlisted(repository, budget, tag) for tag in oldest]
    read = await run_all(jobs, _PARALLEL_REQUESTS)
    candidates = [version for version in untagged if version.digest != union.digest]
    former_indexes = await run_all(
        (_read_former_index(repository, version) for version in candidates), _PARALLEL_REQUESTS
    )
    return GcState(
        now,
        tuple(segment for segment in read if segment is not None),
        tuple(one for one in former_indexes if one is not None),
    )


async def _list_tags(repository: Repository) -> set[SegmentTag]:
    try:
        tags = await repository.list_tags()
    except NotFoundError:
        return set()  # the repository said itself that it does not exist
    return {tag for tag in map(SegmentTag.parse, tags) if tag is not None}


async def _read_listed(
    repository: Repository, budget: TableBudget, segment: Segment, place: Place
) -> StoredSegment:
    try:
        stored = await repository.get_manifest(str(segment.manifest))
    except NotFoundError as error:
        if segment.condemned is not None:
            return StoredSegment(segment, place)
        raise RegistryError(
            f"{repository.name}: the manifest of {segment.tag} is gone, though no gc condemned it ({error});"
            " 'verify --repair' takes it out of the index"
        ) from None
    return await _read_segment(repository, budget, segment, place, stored.content)


async def _read_unlisted(
    repository: Repository, budget: TableBudget, tag: SegmentTag
) -> StoredSegment | None:
    """Read what an earlier gc took out of the index; None where it is gone, or nothing of ours."""
    try:
        stored = await repository.get_manifest(str(tag.manifest))
    except NotFoundError:
        return None
    try:
        segment = Segment.from_manifest(stored.content)
    except FormatError:
        return None
    return await _read_segment(repository, budget, segment, Place.UNLISTED, stored.content)


async def _read_segment(
    repository: Repository, budget: TableBudget, segment: Segment, place: Place, content: bytes
) -> StoredSegment:
    layers: tuple[Descriptor, ...] = ()
    try:
        layers = Manifest.parse(content).layers
        _check_same_table(segment, Segment.from_manifest(content))
        table, size = await _read_table(repository, budget, segment.table)
        await asyncio.to_thread(_check_blobs, table, layers)
    except LimitError as error:
        raise LimitError(f"{repository.name}: {error}; gc decides on all of them, or on nothing") from None
    except (NotFoundError, DigestError, FormatError) as error:
        if segment.condemned is not None or place is Place.UNLISTED:
            return StoredSegment(segment, place, layers)
        raise type(error)(
            f"{repository.name}: {segment.tag} cannot be read: {error}; 'verify --repair' mends it, or"
            " takes it out"
        ) from None
    return StoredSegment(segment, place, layers, table, size)


def _check_same_table(listed: Segment, manifest: Segment) -> None:
    if listed.table != manifest.table:
        raise FormatError(f"the index names table {listed.table}, and its manifest {manifest.table}")


async def _read_table(repository: Repository, budget: TableBudget, digest: Digest) -> tuple[Table, int]:
    budget.check()
    compressed = await read_blob(repository, digest, MAX_TABLE_BYTES, head_seconds=TABLE_HEAD_SECONDS)
    budget.receive(len(compressed))
    return await asyncio.to_thread(_parse, compressed, budget)


def _parse(compressed: bytearray, budget: TableBudget) -> tuple[Table, int]:
    text = inflate_table(compressed)
    budget.inflate(len(text))
    return parse_table(text), len(text)


def inflate_table(compressed: bytearray) -> bytes:
    """Inflate the blob of a table.

    Raises:
        FormatError: not zstd, or over 64 MiB when inflated.
    """
    try:
        with zstandard.ZstdDecompressor().stream_reader(compressed) as reader:
            text = reader.read(MAX_TABLE_BYTES + 1)
    except zstandard.ZstdError as error:
        raise FormatError(f"table: not zstd: {error}") from None
    if len(text) > MAX_TABLE_BYTES:
        raise FormatError(f"table: over {MAX_TABLE_BYTES} bytes when inflated")
    return text


def _check_blobs(table: Table, layers: Iterable[Descriptor]) -> None:
    """Make sure that all bytes can be accounted for, and carried along."""
    held = {layer.digest for layer in layers}
    for narinfo in table.narinfos:
        if NarUrl.parse(narinfo.url).blob not in held:
            raise FormatError(f"{narinfo.store_path}: its NAR is in no layer of the manifest")


async def _read_former_index(repository: Repository, version: UntaggedVersion) -> FormerIndex | None:
    """Tell whether a manifest without a tag was the index once: nothing else is anybody's to sweep."""
    try:
        stored = await repository.get_manifest(str(version.digest))
        CacheIndex.parse(stored.content)
    except (NotFoundError, FormatError):
        return None
    return FormerIndex(version.digest, version.created, len(stored.content))

"""The commit: blobs, then the segment under its tag, then the index. Nothing is visible before it is whole.

Two writers may overwrite each other's index; the segment's own tag protects it until a later writer lists
it. Source: design section 2, "Index".
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

import zstandard

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.cutting import cut
from nixcache_oci.cache.listing import Listing, Union, read_union
from nixcache_oci.cache.mending import Mending, Tell, may_be_about_a_child
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment, build_manifest
from nixcache_oci.cache.table import Table, render_table
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import has_blob
from nixcache_oci.errors import FormatError, NotFoundError, RegistryError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

_TABLE_LEVEL: Final = 12
_INDEX_TRIES: Final = 3
_FIRST_PAUSE_SECONDS: Final = 0.4

ChangeIndex = Callable[[Union], Awaitable[CacheIndex]]
"""Gives the index to write for what was read."""


@dataclass(frozen=True, slots=True)
class TableBlob:
    """A table as it is sent.

    Attributes:
        content: compressed.
        digest: of that.
        created: when, as its header says; becomes the segment's time.
        paths: how many narinfos it lists.
    """

    content: bytes
    digest: Digest
    created: datetime
    paths: int

    @classmethod
    def of(cls, table: Table) -> Self:
        """Write a table; a full one takes seconds.

        Raises:
            FormatError: over a limit of the format.
        """
        content = zstandard.ZstdCompressor(level=_TABLE_LEVEL).compress(render_table(table))
        return cls(content, Digest.of(content), table.header.created, len(table.narinfos))


async def push_segment(
    repository: Repository, table: Table, layers: Iterable[Descriptor], *, source: str | None = None
) -> Segment:
    """Push a table, and the manifest that holds it and its blobs together, under the segment's own tag.

    Args:
        repository: where the blobs of ``layers`` were pushed to already.
        table: what the segment lists; its header's time becomes the segment's.
        layers: every blob that the narinfos point into.
        source: address of the GitHub repository: GHCR links the package to it.

    Raises:
        FormatError: over a limit of the format.
        RegistryError: a push failed; the cache is as it was.
    """
    # On a thread: long enough for other connections to be dropped.
    blob = await asyncio.to_thread(TableBlob.of, table)
    # Beside each other: to a distant registry, each of them is three round trips.
    await run_all((repository.push_blob(blob.digest, blob.content), push_empty_config(repository)), 2)
    return await tag_segment(repository, blob, layers, source=source)


async def tag_segment(
    repository: Repository, table: TableBlob, layers: Iterable[Descriptor], *, source: str | None = None
) -> Segment:
    """Push the manifest of a segment, under its own tag; all that it names is there, the empty config too.

    Arguments and errors are those of ``push_segment``.
    """
    manifest = build_manifest(
        Descriptor(media_type.TABLE, table.digest, len(table.content)),
        layers,
        created=table.created,
        paths=table.paths,
        source=source,
    )
    segment = Segment.from_manifest(manifest)
    await repository.push_manifest(str(segment.tag), manifest, media_type.IMAGE_MANIFEST)
    _log.info("segment pushed", extra={"fields": {"tag": segment.tag, "paths": segment.paths}})
    return segment


async def list_segments(
    repository: Repository,
    mine: Sequence[Segment],
    *,
    source: str | None = None,
    converted: Digest | None = None,
    tell: Tell | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Listing | None:
    """Write an index that lists these segments beside all others.

    Args:
        repository: where the cache lies.
        mine: segments that were pushed.
        source: address of the GitHub repository: GHCR links the package to it.
        converted: document of version 1 whose entries are in segments by now: an index that holds it is
            replaced, one that holds another document is not.
        tell: see ``write_index``.
        sleep: waits so many seconds between tries.

    Returns:
        What the index was seen to list, when it was looked at after the write. None means that other writers
        were at it: the segments are found by their tags until one of them lists them.

    Raises:
        FormatError: what is there is no index of version 2, nor the converted one; nothing was written over
            it.
        RegistryError: the repository could not answer; nothing was written, or the write failed.
    """

    async def listing(union: Union) -> CacheIndex:
        if union.version1 not in (None, converted):
            what = "another version 1 index than a moment ago" if converted else "a version 1 index"
            raise FormatError(
                f"{repository.name}: {INDEX_TAG} is {what}, written by the older tool; it was left as it is:"
                " publish again, for a publish takes its entries over first"
            )
        index = union.index.with_segments(mine)
        return replace(index, source=index.source or source)

    return await write_index(repository, mine, listing, tell=tell, sleep=sleep)


async def write_index(
    repository: Repository,
    known: Iterable[Segment],
    change: ChangeIndex,
    *,
    tell: Tell | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Listing | None:
    """Read tags and index once, change what was read, write it, and look whether it is still there.

    A segment whose manifest is gone, though no gc took it, is not carried over: registries refuse an index
    that lists it. What is left of it is listed by a new segment in its place.

    Args:
        repository: where the cache lies.
        known: segments that are there: their manifests are neither fetched nor looked for.
        change: gives the index to write for what was read; is asked again where another writer came between.
        tell: hears of segments that are gone; None for the log.
        sleep: waits so many seconds between tries.

    Returns:
        What the changed index lists, when it was seen to be there; None where other writers were at it.

    Raises:
        Error: what ``change`` raises; nothing was written for it.
        FormatError: what is there is no index of a Nix cache; nothing was written over it.
        RegistryError: the repository could not answer; nothing was written, or the write failed.
    """
    known = tuple(known)
    mending = Mending(repository, push_table, known, tell or _log.warning)
    for attempt in range(_INDEX_TRIES):
        if attempt:
            await sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1))  # noqa: S311  # jitter
        union = await read_union(repository, known)
        index = await mending.mend(await change(union), union.untagged)
        digest = Digest.of(index.render())
        if digest != union.digest:  # else another writer came to the same, or the last try was seen late
            try:
                await _push_index(repository, index)
            except RegistryError as error:
                if not may_be_about_a_child(error):
                    raise
                mended = await mending.mend(index, index.segments)
                if mended == index:
                    raise
                index, digest = mended, await _push_index(repository, mended)
            if await _read_back(repository) != digest:
                _log.info("another writer came between")
                continue
            _log.info("index written", extra={"fields": {"digest": digest, "segments": len(index.segments)}})
        return Listing(digest, index.segments, is_complete=union.is_complete)
    return None


async def push_table(
    repository: Repository, table: Table, blobs: Mapping[Digest, Descriptor], source: str | None
) -> list[Segment]:
    """Push a table as one segment, or as several where that is over a limit.

    Args:
        repository: where the blobs lie.
        table: what the segments list.
        blobs: descriptor of each blob that the narinfos point into.
        source: address of the GitHub repository: GHCR links the package to it.
    """
    # References first, and the records last: who finds these finds all.
    *contents, last = cut(order_by_references(table.narinfos), blobs)
    tables = [Table(table.header, (), content.narinfos) for content in contents]
    tables.append(Table(table.header, table.records, last.narinfos))
    return [
        await push_segment(repository, one, content.layers, source=source)
        for one, content in zip(tables, [*contents, last], strict=True)
    ]


async def _push_index(repository: Repository, index: CacheIndex) -> Digest:
    return await repository.push_manifest(INDEX_TAG, index.render(), media_type.IMAGE_INDEX)


async def push_empty_config(repository: Repository) -> None:
    """Push what every segment shares, where it is not there yet.

    Some registries stumble over a blob that is written again while others read it.
    """
    if not await has_blob(repository, EMPTY_CONFIG):
        await repository.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)


async def _read_back(repository: Repository) -> Digest | None:
    try:
        return await repository.resolve(INDEX_TAG)
    except NotFoundError:
        return None  # registries lag: a first push may not be seen at once

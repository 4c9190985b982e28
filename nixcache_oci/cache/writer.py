"""Writing segments: a table, and a manifest of it and its blobs, under a tag of its own.

Blobs come before the manifest that names them, references before referrers, and records last: whatever a
record names exists already. Source: design section 2, "Segment", and section 4.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

import zstandard

from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.parallel import run_all, run_in_thread
from nixcache_oci.cache.record import Record, record_fields
from nixcache_oci.cache.segment import MAX_LAYERS, Segment, build_manifest
from nixcache_oci.cache.splitting import MAX_NARINFO_BYTES, split
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import has_blob
from nixcache_oci.errors import RegistryError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

_log = logging.getLogger(__name__)

_PARALLEL_REQUESTS: Final = 16
_TABLE_LEVEL: Final = 12
_ABOUT_TYPE = re.compile(r"media ?type|artifact ?type", re.IGNORECASE)  # "unknown media type: …"
MAX_RECORD_BYTES: Final = 3 * 1024 * 1024
"""Records beside a table's narinfos; more get segments of their own."""


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What the segments of one writer have in common.

    Attributes:
        max_layers: of a manifest, its table included.
        max_blob_bytes: limit of the registry; None for none.
        source: URL of the GitHub repository: GHCR links the package to it.
    """

    max_layers: int = MAX_LAYERS
    max_blob_bytes: int | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class SegmentDraft:
    """A segment to be pushed: its table, and every blob that the narinfos point into."""

    table: Table
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class TableBlob:
    """A compressed table.

    Attributes:
        content: the blob.
        digest: of the blob.
        created: from the header; the segment's time.
        paths: number of narinfos.
    """

    content: bytes
    digest: Digest
    created: datetime
    paths: int

    @classmethod
    def of(cls, table: Table) -> Self:
        """Render and compress a table; a full one takes seconds.

        Raises:
            FormatError: over a limit of the format.
        """
        content = zstandard.ZstdCompressor(level=_TABLE_LEVEL).compress(render_table(table))
        return cls(content, Digest.of(content), table.header.created, len(table.narinfos))


async def write_segments(
    repository: Repository,
    header: TableHeader,
    narinfos: Sequence[NarInfo],
    blobs: Mapping[Digest, Descriptor],
    records: Sequence[Record] = (),
    *,
    options: SegmentOptions | None = None,
) -> list[Segment]:
    """Push one segment, or several if that is over a limit; the index does not list them yet.

    Args:
        repository: has all blobs already.
        header: of each table; its time is the segments'.
        narinfos: references first, with URLs of this cache.
        blobs: descriptor of each blob that they point into, and maybe more.
        records: for gc.
        options: None for the format's own limits.

    Raises:
        FormatError: over a limit of the format.
        RegistryError: the repository refused; pushed segments are found by their tags.
    """
    options = options or SegmentOptions()
    # On a thread: a large one takes seconds.
    drafts = await run_in_thread(draft_segments, header, narinfos, blobs, records, options)
    return await push_drafts(repository, drafts, options)


def draft_segments(
    header: TableHeader,
    narinfos: Iterable[NarInfo],
    blobs: Mapping[Digest, Descriptor],
    records: Sequence[Record],
    options: SegmentOptions,
) -> list[SegmentDraft]:
    """Decide what each segment holds; arguments as of ``write_segments``."""
    contents = split(
        narinfos, blobs, max_layers=options.max_layers - 1, max_blob_bytes=options.max_blob_bytes
    )
    first, *more = _split_records(records, options.max_blob_bytes or MAX_NARINFO_BYTES)
    return [
        *(SegmentDraft(Table(header, (), one.narinfos), one.layers) for one in contents[:-1]),
        SegmentDraft(Table(header, first, contents[-1].narinfos), contents[-1].layers),
        *(SegmentDraft(Table(header, piece), ()) for piece in more),
    ]


def _split_records(records: Iterable[Record], most_bytes: int) -> list[tuple[Record, ...]]:
    """Split records: the first go beside narinfos, the others into tables of their own."""
    pieces: list[list[Record]] = [[]]
    size, limit = 0, min(MAX_RECORD_BYTES, most_bytes // 2)
    for record in records:
        more = record_size(record)
        if size + more > limit:
            pieces.append([])
            size, limit = 0, min(MAX_NARINFO_BYTES, most_bytes)
        pieces[-1].append(record)
        size += more
    return [tuple(piece) for piece in pieces]


def record_size(record: Record) -> int:
    """Return the bytes of a record in a table."""
    return sum(len(f"{key}: {value}\n".encode()) for key, value in record_fields(record)) + 1


async def push_drafts(
    repository: Repository, drafts: Iterable[SegmentDraft], options: SegmentOptions
) -> list[Segment]:
    """Push segments one after another; errors as of ``write_segments``."""
    return [
        await push_segment(repository, draft.table, draft.layers, source=options.source) for draft in drafts
    ]


async def push_segment(
    repository: Repository,
    table: Table,
    layers: Iterable[Descriptor],
    *,
    source: str | None = None,
    merges: Iterable[Digest] = (),
) -> Segment:
    """Push a table, and the manifest of it and its blobs, under the segment's own tag.

    Args:
        repository: has the blobs of ``layers`` already.
        table: its header's time is the segment's.
        layers: every blob that the narinfos point into.
        source: URL of the GitHub repository: GHCR links the package to it.
        merges: manifests of segments whose paths and records it has all.

    Raises:
        FormatError: over a limit of the format.
        RegistryError: a push failed; the cache is unchanged.
    """
    # On a thread: it takes long enough for other connections to time out.
    blob = await asyncio.to_thread(TableBlob.of, table)
    # Concurrently: each takes three round trips.
    await run_all((repository.push_blob(blob.digest, blob.content), push_empty_config(repository)), 2)
    return await tag_segment(repository, blob, layers, source=source, merges=merges)


async def tag_segment(
    repository: Repository,
    table: TableBlob,
    layers: Iterable[Descriptor],
    *,
    source: str | None = None,
    merges: Iterable[Digest] = (),
) -> Segment:
    """Push the manifest of a segment under its own tag; its blobs and the empty config exist.

    Arguments and errors are those of ``push_segment``.
    """
    manifest = build_manifest(
        Descriptor(media_type.TABLE, table.digest, len(table.content)),
        layers,
        created=table.created,
        paths=table.paths,
        source=source,
        merges=merges,
    )
    return await push_tagged(repository, manifest)


async def push_tagged(repository: Repository, manifest: bytes) -> Segment:
    """Push the manifest of a segment under its own tag, without its artifactType where that is refused.

    Raises:
        FormatError: it is not a segment's.
        RegistryError: the push failed.
    """
    segment = Segment.from_manifest(await push_typed(repository, manifest))
    _log.info("segment pushed", extra={"fields": {"tag": segment.tag, "paths": segment.paths}})
    return segment


async def push_typed(repository: Repository, content: bytes, tag: str | None = None) -> bytes:
    """Push a manifest, without its artifactType where that is refused; return what was stored.

    GitLab takes only those that it knows.

    Args:
        repository: has all blobs already.
        content: of the manifest.
        tag: None for a segment's own.

    Raises:
        RegistryError: the push failed.
    """
    try:
        await _push(repository, content, tag)
    except RegistryError as error:
        plain = replace(Manifest.parse(content), artifact_type=None).render()
        if plain == content or error.code != "MANIFEST_INVALID" or not _ABOUT_TYPE.search(str(error)):
            raise
        _log.info("the registry takes no artifactType of ours", extra={"fields": {"reason": str(error)}})
        await _push(repository, plain, tag)
        return plain
    return content


async def _push(repository: Repository, content: bytes, tag: str | None) -> None:
    own = tag or str(Segment.from_manifest(content).tag)
    await repository.push_manifest(own, content, media_type.IMAGE_MANIFEST)


async def push_empty_config(repository: Repository) -> None:
    """Push the empty config that all segments share, if it is missing.

    Some registries fail if a blob is written again while others read it.
    """
    if not await has_blob(repository, EMPTY_CONFIG):
        await repository.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)


async def describe_blobs(repository: Repository, narinfos: Iterable[NarInfo]) -> dict[Digest, Descriptor]:
    """Describe the blobs that narinfos point into; asks for their sizes.

    Raises:
        RegistryError: the repository could not answer, or lacks one.
    """
    by_blob = {NarUrl.parse(narinfo.url).blob: narinfo for narinfo in narinfos}

    async def describe(blob: Digest, narinfo: NarInfo) -> Descriptor:
        size = await repository.stat_blob(blob)
        if NarUrl.parse(narinfo.url).offset is None:
            return describe_nar(blob, narinfo.compression, size)
        return Descriptor(media_type.PACK, blob, size)

    described = await run_all((describe(*one) for one in by_blob.items()), _PARALLEL_REQUESTS)
    return {descriptor.digest: descriptor for descriptor in described}

"""The conversion: the entries of a version 1 cache become segments, at the first publish to it.

From then on every NAR is a layer of a manifest, and no registry's garbage collector may take it. Until then
it may: an entry without its blob is named and left out, and so is whatever refers to it, for a closure is
complete or not listed. Nothing is deleted, and nothing is sent but tables and manifests.
Source: design section 2, "Version 1".
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from nixcache_oci.cache.commit import push_segment
from nixcache_oci.cache.cutting import SegmentContent, cut
from nixcache_oci.cache.nar_blob import describe_nar
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import SILENT, Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.salvage import find_lost
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES, Version1, parse_version1
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import TABLE_HEAD_SECONDS, probe_blob, read_blob
from nixcache_oci.errors import DigestError, NotFoundError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci.digest import Digest

SCOPE: Final = "version-1"
RUN: Final = "conversion"

_PARALLEL_REQUESTS: Final = 16
_ROOTS_OF_A_RECORD: Final = 1000  # a stanza is at most 1 MiB

IsListed = Callable[[HashPart], bool]
"""Tells whether a segment lists this object already."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of it.

    Attributes:
        document: what was converted; ``list_segments`` wants to know.
        segments: what was pushed; the index does not list them yet.
        missing: base name and reason of each entry that was left out, as it cannot be had whole any more.
        skipped: what in the document could not be read, and why: the first of it.
        skipped_count: how much in all.
    """

    document: Digest
    segments: tuple[Segment, ...]
    missing: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    skipped_count: int


async def convert_version1(
    repository: Repository,
    document: Digest,
    *,
    listed: IsListed,
    now: datetime,
    source: str | None,
    max_layers: int,
    max_blob_bytes: int | None = None,
    progress: Progress = SILENT,
) -> Conversion:
    """Push the entries of a version 1 cache as segments; ``list_segments`` then replaces the index.

    Killed anywhere, the cache serves what it did, and the next run goes on where this one stopped.

    Args:
        repository: where the cache lies.
        document: of version 1, as the listing names it.
        listed: an earlier run may have been interrupted, and its segments are found by their tags.
        now: becomes the segments' time.
        source: address of the GitHub repository: GHCR links the package to it.
        max_layers: of a manifest, its table among them.
        max_blob_bytes: of a table; None for any size.
        progress: is told how far it is.

    Raises:
        FormatError: it is no such document.
        DigestError: it is not what its digest says.
        RegistryError: the repository could not answer, or refused.
    """
    content = await read_blob(repository, document, MAX_DOCUMENT_BYTES, head_seconds=TABLE_HEAD_SECONDS)
    # A large document takes seconds to parse: long enough for other connections to be dropped.
    version1 = await asyncio.to_thread(parse_version1, content)
    former = await asyncio.to_thread(version1.to_table)
    narinfos = [one for one in former.narinfos if not listed(one.store_path.hash_part)]
    sizes = await _probe_blobs(repository, {_blob_of(narinfo) for narinfo in narinfos}, progress)
    missing = find_lost(narinfos, sizes, _find_unreadable(version1, narinfos, listed))
    kept = order_by_references(
        (narinfo for narinfo in narinfos if narinfo.store_path not in missing), version1.gc_roots
    )
    there = {narinfo.store_path for narinfo in kept}
    roots = [path for path in version1.gc_roots if path in there or listed(path.hash_part)]
    header = TableHeader(now, public_keys=version1.public_keys)
    *contents, last = await asyncio.to_thread(_cut, kept, sizes, max_layers, max_blob_bytes)
    # References first, and the records last: who finds these finds all.
    tables = [Table(header, (), content.narinfos) for content in contents]
    tables.append(Table(header, _make_records(roots, now), last.narinfos))
    segments = [
        await push_segment(repository, table, content.layers, source=source)
        for table, content in zip(tables, [*contents, last], strict=True)
    ]
    left_out = tuple((path.base_name, reason) for path, reason in missing.items())
    return Conversion(document, tuple(segments), left_out, tuple(version1.skipped), version1.skipped_count)


def _find_unreadable(version1: Version1, narinfos: Iterable[NarInfo], listed: IsListed) -> set[str]:
    """Find the references to entries that the document has, and that could not be read."""
    references = {reference for narinfo in narinfos for reference in narinfo.references}
    found = ((reference, reference.partition("-")[0]) for reference in references)
    return {
        base_name
        for base_name, hash_part in found
        if hash_part in version1.unreadable and not listed(HashPart(hash_part))
    }


async def _probe_blobs(
    repository: Repository, blobs: Collection[Digest], progress: Progress
) -> dict[Digest, int]:
    """Find the size of each blob; one that cannot be read has none."""
    sizes: dict[Digest, int] = {}
    waiting = iter(blobs)

    async def ask() -> None:
        for blob in waiting:
            with suppress(NotFoundError, DigestError):
                sizes[blob] = await probe_blob(repository, blob)
            stage.advance(1)

    with progress.stage("converting: looking for", "blobs", len(blobs)) as stage:
        await run_all((ask() for _ in range(_PARALLEL_REQUESTS)), _PARALLEL_REQUESTS)
    return sizes


def _cut(
    narinfos: Sequence[NarInfo], sizes: Mapping[Digest, int], max_layers: int, max_blob_bytes: int | None
) -> list[SegmentContent]:
    compressions = {_blob_of(narinfo): narinfo.compression for narinfo in narinfos}
    blobs = {blob: describe_nar(blob, compression, sizes[blob]) for blob, compression in compressions.items()}
    return cut(narinfos, blobs, max_layers=max_layers - 1, max_blob_bytes=max_blob_bytes)


def _make_records(roots: Sequence[StorePath], now: datetime) -> tuple[PublishRecord, ...]:
    """Let gc count what the older tool kept, as one run."""
    named = sorted((path.name, path) for path in roots)
    starts = range(0, max(len(named), 1), _ROOTS_OF_A_RECORD)
    return tuple(
        PublishRecord(SCOPE, RUN, now, roots=tuple(named[start : start + _ROOTS_OF_A_RECORD]))
        for start in starts
    )


def _blob_of(narinfo: NarInfo) -> Digest:
    return NarUrl.parse(narinfo.url).blob

"""The migration: the entries of a version 1 cache become segments, at the first publish to it.

From then on every NAR is a layer of a manifest, and no registry's garbage collector may take it. Until then
it may: an entry without its blob is named and left out, and so is whatever refers to it, for a closure is
complete or not listed. Nothing is deleted, and nothing is sent but tables and manifests.
Source: design section 2, "Version 1".
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import SILENT, Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.salvage import find_lost
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.timestamp import now as present
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES, Version1, parse_version1
from nixcache_oci.cache.writer import SegmentOptions, write_segments
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import TABLE_HEAD_SECONDS, probe_blob, read_blob
from nixcache_oci.errors import DigestError, NotFoundError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.wording import counted

_MOST_SHOWN: Final = 10

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
    options: SegmentOptions,
    progress: Progress = SILENT,
) -> Conversion:
    """Push the entries of a version 1 cache as segments; ``list_segments`` then replaces the index.

    Killed anywhere, the cache serves what it did, and the next run goes on where this one stopped.

    Args:
        repository: where the cache lies.
        document: of version 1, as the listing names it.
        listed: an earlier run may have been interrupted, and its segments are found by their tags.
        now: becomes the segments' time.
        options: of the segments.
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
    compressions = {_blob_of(narinfo): narinfo.compression for narinfo in kept}
    segments = await write_segments(
        repository,
        TableHeader(now, public_keys=version1.public_keys),
        kept,
        {blob: describe_nar(blob, compression, sizes[blob]) for blob, compression in compressions.items()},
        _make_records(roots, now),
        options=options,
    )
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

    with progress.stage("converting: looking for", "blob", len(blobs)) as stage:
        await run_all((ask() for _ in range(_PARALLEL_REQUESTS)), _PARALLEL_REQUESTS)
    return sizes


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


async def migrate_version1(
    repository: Repository, folder: IndexFolder, options: PublishOptions, progress: Progress
) -> Conversion | None:
    """Push the entries of a version 1 index as segments; None where there is no such index.

    Args:
        repository: with leave to push.
        folder: where tables are kept.
        options: how.
        progress: is told how far it is, and of entries that cannot be taken over.

    Raises:
        FormatError: the index cannot be read.
        RegistryError: the repository could not answer, or refused.
    """
    listing = await read_listing(repository)
    document = listing.version1
    if document is None:
        return None
    tables = await read_tables(repository, folder, replace(listing, version1=None), progress=progress)
    catalog = tables.catalog((), with_condemned=False)
    conversion = await convert_version1(
        repository,
        document,
        listed=lambda hash_part: catalog.find(hash_part) is not None,
        now=present(),
        options=options.segments,
        progress=progress,
    )
    for what, entries, count in (
        ("left out", conversion.missing, len(conversion.missing)),
        ("unreadable", conversion.skipped, conversion.skipped_count),
    ):
        for name, reason in entries[:_MOST_SHOWN]:
            progress.warn(f"version 1 entry {name}: {what}: {reason}")
        if count > _MOST_SHOWN:
            more = counted(count - _MOST_SHOWN, "more version 1 entry", "more version 1 entries")
            progress.warn(f"{more} {what}")
    return conversion

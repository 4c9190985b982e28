"""The migration: the first publish to a version 1 cache turns its entries into segments.

From then on every NAR is a layer of a manifest, safe from the registry's garbage collector. Entries whose
blobs it deleted before are named and left out, with their referrers: a closure is listed whole or not at all.
Nothing is deleted, and only tables and manifests are sent. Source: design section 2, "Version 1".
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
"""Checks whether a segment lists this object already."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of a migration."""

    document: Digest  # that was converted, for `list_segments`
    segments: tuple[Segment, ...]  # that were pushed; the index does not list them yet
    missing: tuple[tuple[str, str], ...]  # base name and reason of each entry without a complete closure
    skipped: tuple[tuple[str, str], ...]  # the first malformed parts of the document, and why
    skipped_count: int  # how many in all


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

    If it is interrupted, the cache stays as it was, and the next run continues: it skips what ``listed`` says
    that segments have.

    Raises:
        FormatError: it is not such a document.
        DigestError: it does not match its digest.
        RegistryError: the repository could not answer, or refused.
    """
    content = await read_blob(repository, document, MAX_DOCUMENT_BYTES, head_seconds=TABLE_HEAD_SECONDS)
    # On a thread: a large document takes seconds, and other connections would time out.
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
    """Find references to malformed entries of the document."""
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
    """Find the sizes of the readable blobs."""
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
    """Record the roots of the older tool for gc, as one run."""
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
    """Convert a version 1 index, if there is one, and warn of lost entries; see ``convert_version1``."""
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

"""The segments that replace others: what to keep of those rewritten or merged, and how it is written.

NAR blobs stay where they are. Slices of packs move to new packs, in closure order, except from packs that are
over half full and completely live: moving those would gain nothing. Source: design section 5, promise 5.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, NarUrl
from nixcache_oci.cache.progress import SILENT, Stage
from nixcache_oci.cache.record import Record, record_fields
from nixcache_oci.cache.repacking import join_headers, repack
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.writer import SegmentOptions, write_segments
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.gc.state import GcState, StoredSegment
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.variants import is_accepted
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest


@dataclass(frozen=True, eq=False)
class Replacement:
    """One or more segments, and what is live in them."""

    sources: tuple[StoredSegment, ...]  # the segments that are replaced, the oldest first
    records: tuple[Record, ...]  # to keep, each once
    live: bytearray  # what counting roots reach, one byte per path
    public_keys: tuple[PublicKey, ...]  # whose signatures decide between variants

    @property
    def narinfos(self) -> tuple[NarInfo, ...]:
        """Live ones, each path once, parsed anew to save memory; FormatError if a table is damaged now."""
        variants: defaultdict[int, list[NarInfo]] = defaultdict(list)
        for source in reversed(self.sources):
            narinfos = source.table.narinfos() if source.table is not None else ()
            for path, narinfo in zip(source.paths, narinfos, strict=True):
                if self.live[path]:
                    variants[path].append(narinfo)
        return tuple(_choose(found, self.public_keys) for found in variants.values())


def replace_segments(
    state: GcState, live: bytearray, needed: AbstractSet[Record], public_keys: Sequence[PublicKey]
) -> Callable[[Iterable[StoredSegment]], Replacement]:
    """Return a function that makes the replacement of segments; it keeps the needed records.

    Without public keys, those that the tables record decide between variants.
    """
    keys = tuple(public_keys) or _recorded_keys(state)

    def replace(sources: Iterable[StoredSegment]) -> Replacement:
        in_order = tuple(sorted(sources, key=lambda one: (one.segment.created, one.manifest)))
        records = {record for source in in_order for record in source.records if record in needed}
        return Replacement(in_order, tuple(sorted(records, key=record_fields)), live, keys)

    return replace


def _choose(newest_first: Sequence[NarInfo], keys: Sequence[PublicKey]) -> NarInfo:
    """Choose as readers do: signed by a key, the smallest NarHash, signed by anybody, the newest."""
    if len(newest_first) == 1:
        return newest_first[0]
    return min(
        newest_first,
        key=lambda one: (
            not is_accepted(one, keys),
            str(one.nar_hash),
            not one.sigs,
        ),
    )


def _recorded_keys(state: GcState) -> tuple[PublicKey, ...]:
    keys = {}
    for one in state.segments:
        for text in one.table.header.public_keys if one.table is not None else ():
            try:
                keys[text] = PublicKey.parse(text)
            except FormatError:
                continue  # a reader would not use it either
    return tuple(keys.values())


async def push_replacement(
    repository: Repository,
    replacement: Replacement,
    created: datetime,
    options: SegmentOptions,
    stage: Stage = SILENT,
) -> list[Segment]:
    """Push the segments that replace others; the index does not list them yet.

    Packs keep to the limit of a blob, too; the stage counts their bytes.

    Raises:
        FormatError: a pack does not hold what a narinfo says.
        DigestError: a pack does not match its digest.
        RegistryError: the repository could not answer, or refused.
    """
    blobs = {layer.digest: layer for one in replacement.sources for layer in one.layers[1:]}
    # On a thread: a large table takes seconds to parse.
    narinfos: Sequence[NarInfo] = await asyncio.to_thread(lambda: replacement.narinfos)
    narinfos, packs = await repack(
        repository, narinfos, _moving_packs(narinfos, blobs), options.max_blob_bytes, stage
    )
    return await write_segments(
        repository,
        join_headers((one.table.header for one in replacement.sources if one.table is not None), created),
        narinfos,
        blobs | packs,
        replacement.records,
        options=options,
    )


def _moving_packs(
    narinfos: Iterable[NarInfo], blobs: Mapping[Digest, Descriptor]
) -> dict[Digest, Descriptor]:
    slices: dict[Digest, set[NarUrl]] = {}
    for narinfo in narinfos:
        url = NarUrl.parse(narinfo.url)
        if url.offset is not None:
            slices.setdefault(url.blob, set()).add(url)
    return {
        pack: blobs[pack]
        for pack, urls in slices.items()
        if blobs[pack].size <= MAX_PACK_BYTES // 2 or sum(url.length or 0 for url in urls) < blobs[pack].size
    }

"""The segments that replace others: what to keep of those rewritten or merged, and how it is written.

NAR blobs stay where they are. Slices of packs move to new packs, in closure order, except from packs that are
over half full and completely live: moving those would gain nothing. Source: design section 5, promise 5.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, NarUrl
from nixcache_oci.cache.pack import PackBuilder
from nixcache_oci.cache.progress import SILENT, Stage
from nixcache_oci.cache.record import Record, record_fields
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.writer import SegmentOptions, write_segments
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import DigestError, FormatError, NotFoundError
from nixcache_oci.maintenance.gc.state import GcState, StoredSegment
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_signed_by
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

_PACKS_IN_MEMORY: Final = 4


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
            not (is_signed_by(one, keys) or is_content_addressed(one)),
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
    narinfos = await asyncio.to_thread(lambda: replacement.narinfos)
    kept = _kept_packs(narinfos, blobs)
    staying: list[NarInfo] = []
    moving: list[NarInfo] = []
    for narinfo in order_by_references(narinfos):
        url = NarUrl.parse(narinfo.url)
        (staying if url.offset is None or url.blob in kept else moving).append(narinfo)
    moved, packs = await _move(repository, moving, options.max_blob_bytes, stage)
    blobs.update((pack.digest, pack) for pack in packs)
    return await write_segments(
        repository,
        _join_headers(replacement.sources, created),
        order_by_references([*staying, *moved]),
        blobs,
        replacement.records,
        options=options,
    )


def _kept_packs(narinfos: Iterable[NarInfo], blobs: dict[Digest, Descriptor]) -> set[Digest]:
    slices: dict[Digest, set[NarUrl]] = {}
    for narinfo in narinfos:
        url = NarUrl.parse(narinfo.url)
        if url.offset is not None:
            slices.setdefault(url.blob, set()).add(url)
    return {
        pack
        for pack, urls in slices.items()
        if blobs[pack].size > MAX_PACK_BYTES // 2 and sum(url.length or 0 for url in urls) >= blobs[pack].size
    }


class _Packs:
    """Cuts slices out of verified packs; the last few packs stay in memory."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._held: OrderedDict[Digest, bytearray] = OrderedDict()

    async def cut_out(self, url: NarUrl) -> bytes:
        """Return the bytes of one NAR; errors are those of ``push_replacement``."""
        if url.blob not in self._held:
            try:
                self._held[url.blob] = await read_blob(self._repository, url.blob, MAX_PACK_BYTES)
            except (NotFoundError, DigestError, FormatError) as error:
                raise type(error)(
                    f"{self._repository.name}: pack {url.blob} cannot be read: {error}; nixcache-oci verify"
                    " --content names the paths in it"
                ) from None
        self._held.move_to_end(url.blob)
        if len(self._held) > _PACKS_IN_MEMORY:
            self._held.popitem(last=False)
        start, length = url.offset or 0, url.length or 0
        content = bytes(self._held[url.blob][start : start + length])
        if len(content) != length:
            raise FormatError(f"pack {url.blob}: it is too short for {url}")
        return content


async def _move(
    repository: Repository, moving: Iterable[NarInfo], max_blob_bytes: int | None, stage: Stage
) -> tuple[list[NarInfo], list[Descriptor]]:
    """Copy slices into new packs, and push these; returns the narinfos with their new URLs."""
    moved: list[NarInfo] = []
    packs: list[Descriptor] = []

    async def push(builder: PackBuilder) -> None:
        pack = builder.finish()
        if pack.narinfos:
            await repository.push_blob(pack.digest, pack.content)
            stage.sent(len(pack.content))
            packs.append(Descriptor(media_type.PACK, pack.digest, len(pack.content)))
            moved.extend(pack.narinfos)

    sources = _Packs(repository)
    builder = PackBuilder(max_blob_bytes=max_blob_bytes)
    for narinfo in moving:
        content = await sources.cut_out(NarUrl.parse(narinfo.url))
        if not builder.add(narinfo, content):
            await push(builder)
            builder = PackBuilder(max_blob_bytes=max_blob_bytes)
            builder.add(narinfo, content)
    await push(builder)
    return moved, packs


def _join_headers(sources: Sequence[StoredSegment], created: datetime) -> TableHeader:
    headers = [one.table.header for one in sources if one.table is not None]
    places = {header.source for header in headers}
    return TableHeader(
        created,
        source=places.pop() if len(places) == 1 else None,
        public_keys=tuple(dict.fromkeys(key for header in headers for key in header.public_keys)),
        extra=tuple(dict.fromkeys(field for header in headers for field in header.extra)),
    )

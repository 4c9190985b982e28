"""A publisher, a gc and the registry's own collector on a model repository."""

import random
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.index_folder import NOWHERE, IndexFolder
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.pack import PackBuilder
from nixcache_oci.cache.progress import SILENT
from nixcache_oci.cache.record import PublishRecord, Record
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.writer import SegmentOptions, push_segment
from nixcache_oci.clients.repository import Repository, UntaggedVersion
from nixcache_oci.errors import NotFoundError
from nixcache_oci.maintenance.gc.collect import Collected, carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import Signature
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.merge_plan import find_small
from nixcache_oci.publisher.merger import Merger
from nixcache_oci.publisher.publish_plan import changes_nothing
from tests.maintenance.served import Reader
from tests.support.interleaving import no_sleep
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import hash_part_of
from tests.support.segments import read_records

Clock = Callable[[], datetime]
Before = Callable[[str], Awaitable[None]]


class Thing:
    """A store object of a model: what it is called tells its bytes."""

    def __init__(
        self,
        seed: str,
        references: Iterable[str] = (),
        *,
        size: int = 300,
        is_large: bool = False,
        sigs: tuple[Signature, ...] = (),
    ) -> None:
        self.path = StorePath("/nix/store", hash_part_of(seed), f"thing-{seed}")
        self.base_name = self.path.base_name
        self.references = tuple(references)
        self.content = random.Random(seed).randbytes(size)
        self.is_large = is_large
        self.sigs = sigs

    def narinfo(self) -> NarInfo:
        digest = Digest.of(self.content)
        nar_hash = NixHash(bytes.fromhex(digest.hex))
        return NarInfo(
            self.path,
            str(NarUrl(digest)),
            "none",
            nar_hash,
            len(self.content),
            nar_hash,
            len(self.content),
            self.references,
            sigs=self.sigs,
        )


class ModelRemover:
    """Deletes manifests from a model, each deletion a step."""

    def __init__(self, storage: ModelStorage, before: Before) -> None:
        self._storage = storage
        self._before = before
        self._born: dict[Digest, datetime] = {}

    def look(self, now: datetime) -> None:
        """Remember when each manifest came."""
        for digest in self._storage.manifests:
            self._born.setdefault(digest, now)

    async def remove(self, manifest: Digest, tags: Iterable[str] = ()) -> None:
        del tags  # they go with it
        await self._before(f"remove {manifest}")
        self._storage.manifests.pop(manifest, None)
        for tag, digest in list(self._storage.tags.items()):
            if digest == manifest:
                del self._storage.tags[tag]

    async def untagged(self) -> list[UntaggedVersion]:
        tagged = set(self._storage.tags.values())
        return [
            UntaggedVersion(digest, self._born[digest])
            for digest in self._storage.manifests
            if digest not in tagged and digest in self._born
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def push_things(
    repository: Repository, things: Sequence[Thing], records: Sequence[Record], created: datetime
) -> None:
    """Push one segment: large things as blobs, the others in packs."""
    narinfos: list[NarInfo] = []
    layers: list[Descriptor] = []
    builder = PackBuilder()
    for thing in things:
        if not thing.is_large:
            assert builder.add(thing.narinfo(), thing.content)
            continue
        narinfo = thing.narinfo()
        blob = NarUrl.parse(narinfo.url).blob
        await repository.push_blob(blob, thing.content)
        narinfos.append(narinfo)
        layers.append(describe_nar(blob, "none", len(thing.content)))
    pack = builder.finish()
    if pack.narinfos:
        await repository.push_blob(pack.digest, pack.content)
        layers.append(Descriptor(media_type.PACK, pack.digest, len(pack.content)))
    header = TableHeader(created)
    table = Table(header, tuple(records), (*narinfos, *pack.narinfos))
    segment = await push_segment(repository, table, layers)
    await list_segments(repository, [segment], clock=lambda: created, sleep=no_sleep)


async def publish_things(
    repository: ModelRepository,
    storage: ModelStorage,
    closure: Sequence[Thing],
    records: Sequence[Record],
    clock: Clock,
) -> None:
    """Publish as the publisher does: push what no good segment lists, then look again until all is listed.

    Where all is listed, and no record is needed, nothing is written.
    """
    missing = await _find_missing(repository, storage, closure)
    if not missing and records and await _are_needless(repository, records):
        return
    await push_things(repository, missing, records, clock())
    for _ in range(5):
        missing = await _find_missing(repository, storage, closure)
        if not missing:
            return
        await push_things(repository, missing, records, clock())
    raise AssertionError("its paths are gone again as soon as they are listed")


async def _are_needless(repository: ModelRepository, records: Sequence[Record]) -> bool:
    listing = await read_listing(repository)
    good = [one for one in listing.segments if one.condemned is None]
    recorded = await read_records(repository, replace(listing, segments=tuple(good)))
    return all(isinstance(one, PublishRecord) and changes_nothing(one, recorded) for one in records)


async def _find_missing(
    repository: ModelRepository, storage: ModelStorage, closure: Sequence[Thing]
) -> list[Thing]:
    listing = await read_listing(repository)
    reader = Reader(storage)
    listed: set[str] = set()
    for segment in listing.segments:
        if segment.condemned is None:
            try:
                await repository.resolve(str(segment.manifest))
            except NotFoundError:
                continue  # collected since the listing was read
            listed |= {entry.base_name for entry in reader.entries(str(segment.table))}
    return [thing for thing in closure if thing.base_name not in listed]


async def collect(
    repository: Repository,
    remover: ModelRemover,
    options: GcOptions,
    clock: Clock,
    *,
    force: bool = True,
) -> tuple[GcPlan, Collected]:
    """Run gc once."""
    prepared = await prepare_gc(repository, remover, options, clock=clock)
    collected = await carry_out_gc(repository, remover, prepared, force=force, clock=clock, sleep=no_sleep)
    return prepared.plan, collected


async def merge(repository: Repository, clock: Clock, unmerged: int = 0) -> None:
    """Merge as a publisher does, where more small segments than these are listed."""
    folder = IndexFolder(NOWHERE, "a model")
    merger = Merger(repository, folder, SegmentOptions(), SILENT, clock, no_sleep)
    listing = await read_listing(repository)
    if len(find_small(listing.without_taken_in().segments)) > unmerged:
        await merger.merge(listing)


def sweep_blobs(storage: ModelStorage) -> None:
    """Do what a registry's own collector does: blobs that no manifest names go."""
    held = {
        found
        for content in storage.manifests.values()
        for found in re.findall(rb"sha256:([0-9a-f]{64})", content)
    }
    storage.blobs = {
        digest: content for digest, content in storage.blobs.items() if digest.hex.encode() in held
    }

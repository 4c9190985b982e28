"""Pins and unpins: each is a record in its own segment, so it needs no lock and loses no race.

A pinned path may be only in condemned segments, which a gc may be about to remove from the index. So the
pin's segment lists it again, with its blobs, as a publish would: no gc removes so young a segment, and the
next one counts the pin.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.inventory import Entry, Inventory
from nixcache_oci.cache.keepers import PinningRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.writer import SegmentOptions, write_segments
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import Error, NotFoundError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Relisted:
    """What a pin's segment lists again."""

    narinfos: tuple[NarInfo, ...] = ()  # that are only in condemned segments
    segments: tuple[Segment, ...] = ()  # these condemned segments
    public_keys: tuple[str, ...] = ()  # that they name


def find_condemned(inventory: Inventory, paths: Iterable[HashPart]) -> Relisted:
    """Walk closures, up to paths that the cache lacks, and find what is only in condemned segments."""
    entries: list[Entry] = []
    reached: set[HashPart] = set()
    waiting = list(paths)
    while waiting:
        part = waiting.pop()
        if part in reached:
            continue
        reached.add(part)
        variants = inventory.find(part)
        # All variants, because clients may get any of them.
        waiting += (HashPart.of(name) for entry in variants for name in entry.narinfo.references)
        if variants and all(entry.is_condemned for entry in variants):
            entries.append(variants[0])
    segments = {entry.segment.manifest: entry.segment for entry in entries if entry.segment is not None}
    headers = (inventory.tables.tables[segment.table].header for segment in segments.values())
    return Relisted(
        tuple(entry.narinfo for entry in entries),
        tuple(segments.values()),
        tuple(dict.fromkeys(key for header in headers for key in header.public_keys)),
    )


async def write_pinning(
    repository: Repository,
    records: Sequence[PinningRecord],
    relisted: Relisted,
    options: SegmentOptions,
) -> None:
    """Write a segment with these records, all of one time, and list it.

    Raises:
        FormatError: it is a version 1 cache, which a publish has to convert first.
        Error: a gc has just deleted what is pinned.
        RegistryError: the repository refused; nothing is pinned.
    """
    segments = await write_segments(
        repository,
        TableHeader(records[0].time, public_keys=relisted.public_keys),
        order_by_references(relisted.narinfos),
        await _read_layers(repository, relisted.segments),
        records,
        options=options,
    )
    await list_segments(repository, segments, source=options.source)


async def _read_layers(repository: Repository, segments: Iterable[Segment]) -> dict[Digest, Descriptor]:
    layers: dict[Digest, Descriptor] = {}
    for segment in segments:
        try:
            stored = await repository.get_manifest(str(segment.manifest))
        except NotFoundError:
            raise Error(
                f"{repository.name}: a gc has just deleted {segment.tag}; publish the path again, then pin it"
            ) from None
        layers |= {layer.digest: layer for layer in Manifest.parse(stored.content).layers[1:]}
    return layers

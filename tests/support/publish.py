"""Puts store objects into a cache, in as few lines as a test wants to see.

It uses the project's own formats and commit, not a publisher: what a test serves is what it says here.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import zstandard

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.cache.pack import PackBuilder, fits_pack
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

CREATED = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class StoreObject:
    """A store object to publish: its narinfo says all but where the bytes lie, ``nar`` is uncompressed."""

    narinfo: NarInfo
    nar: bytes

    def signed(self, *keys: SecretKey) -> "StoreObject":
        sigs = tuple(key.sign(fingerprint(self.narinfo)) for key in keys)
        return replace(self, narinfo=replace(self.narinfo, sigs=(*self.narinfo.sigs, *sigs)))

    def compressed(self) -> tuple[NarInfo, bytes]:
        content = zstandard.ZstdCompressor(level=3).compress(self.nar)
        digest = Digest.of(content)
        narinfo = replace(
            self.narinfo,
            url=str(NarUrl(digest, suffix=SUFFIXES["zstd"])),
            compression="zstd",
            file_hash=NixHash(bytes.fromhex(digest.hex)),
            file_size=len(content),
        )
        return narinfo, content


async def publish(
    repository: Repository,
    objects: Iterable[StoreObject],
    *,
    created: datetime = CREATED,
    keys: Sequence[SecretKey] = (),
    records: Sequence[Record] = (),
    in_packs: bool = True,
    is_listed: bool = True,
    source: str | None = None,
) -> Segment:
    """Publish as one segment, small NARs in packs; without ``is_listed`` only the segment's tag knows it."""
    narinfos: list[NarInfo] = []
    layers: list[Descriptor] = []
    packs = [PackBuilder()]
    for one in objects:
        narinfo, content = one.compressed()
        if in_packs and fits_pack(len(content)):
            if not packs[-1].add(narinfo, content):
                packs.append(PackBuilder())
                assert packs[-1].add(narinfo, content)
            continue
        digest = Digest.of(content)
        await repository.push_blob(digest, content)
        layers.append(Descriptor(media_type.NAR_ZSTD, digest, len(content)))
        narinfos.append(narinfo)
    for builder in packs:
        pack = builder.finish()
        if pack.narinfos:
            await repository.push_blob(pack.digest, pack.content)
            layers.append(Descriptor(media_type.PACK, pack.digest, len(pack.content)))
            narinfos += pack.narinfos
    header = TableHeader(created, source, tuple(str(key.public_key) for key in keys))
    segment = await push_segment(repository, Table(header, tuple(records), tuple(narinfos)), layers)
    if is_listed:
        assert await list_segments(repository, [segment], clock=lambda: created)
    return segment


async def publish_version1(
    repository: Repository,
    objects: Iterable[StoreObject],
    *,
    public_key: str | None = None,
    gc_roots: Sequence[object] = (),
) -> None:
    """Publish as the older tool did: plain blobs in no manifest, and one JSON document."""
    entries = {}
    for one in objects:
        narinfo, content = one.compressed()
        digest = Digest.of(content)
        await repository.push_blob(digest, content)
        hash_part = narinfo.store_path.hash_part
        entries[hash_part] = {
            "name": narinfo.store_path.base_name,
            "narinfo": replace(narinfo, url=f"nar/{hash_part}.nar.zst").render(),
            "nar_digest": str(digest),
            "nar_size": len(content),
            "added": "2026-01-01T00:00:00Z",
        }
    document = json.dumps(
        {
            "version": 1,
            "public_key": public_key,
            "generated": "2026-01-01T00:00:00Z",
            "entries": entries,
            "gc_roots": list(gc_roots),
        }
    ).encode()
    layer = Descriptor(media_type.INDEX_V1, Digest.of(document), len(document))
    await repository.push_blob(layer.digest, document)
    await repository.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
    manifest = Manifest(artifact_type=None, config=EMPTY_CONFIG, layers=(layer,), annotations={}).render()
    await repository.push_manifest("cache-index", manifest, media_type.IMAGE_MANIFEST)

"""Caches of very many paths, made up as their tables alone: no NARs, and no publisher for each path."""

import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

import zstandard

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.segment import Segment, build_manifest
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.writer import push_empty_config
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import CREATED

_LETTERS: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_SLICES: Final = 16_000  # of 1,000 bytes in a pack


def made_up_hash_parts(count: int, seed: int = 0) -> list[HashPart]:
    """Make so many, the same ones each time; other seeds give others."""
    generator = random.Random(count + seed)
    return [HashPart("".join(generator.choices(_LETTERS, k=32))) for _ in range(count)]


def name_of(hash_part: HashPart) -> str:
    """Give the name of a made-up path."""
    return f"object-{hash_part[-8:]}"


async def list_made_up(repository: Repository, hash_parts: Sequence[HashPart], segments: int = 1) -> None:
    """List paths in a repository, spread over segments."""
    await push_empty_config(repository)
    parts = [hash_parts[number::segments] for number in range(segments)]
    pushed = [await _push(repository, number, part) for number, part in enumerate(parts)]
    await list_segments(repository, pushed)


async def _push(repository: Repository, number: int, hash_parts: Sequence[HashPart]) -> Segment:
    # As publisher and tables do it, but for the narinfos, which are not rendered one by one.
    created = CREATED + timedelta(seconds=number)
    head = render_table(Table(TableHeader(created), (), ()))
    text = b"\n".join([head, *_narinfos(sorted(hash_parts))])
    content = zstandard.ZstdCompressor(level=3).compress(text)
    digest = Digest.of(content)
    await repository.push_blob(digest, content)
    manifest = build_manifest(
        Descriptor(media_type.TABLE, digest, len(content)),
        [],
        created=created,
        paths=len(hash_parts),
        source=None,
    )
    segment = Segment.from_manifest(manifest)
    await repository.push_manifest(str(segment.tag), manifest, media_type.IMAGE_MANIFEST)
    return segment


def _narinfos(hash_parts: Sequence[HashPart]) -> Iterator[bytes]:
    """Write narinfos of the usual size, four references and a signature each."""
    signed = store_object("template").signed(SecretKey.generate("bench-1")).narinfo
    template = signed.render()
    blob = "0123456789abcdef" * 4
    for number, hash_part in enumerate(hash_parts):
        text = template.replace(signed.store_path.base_name, f"{hash_part}-{name_of(hash_part)}")
        text = text.replace(signed.url, f"nar/{blob}/{number % _SLICES * 1000}-1000.nar.zst")
        text = text.replace("Compression: none", "Compression: zstd")
        others = hash_parts[max(0, number - 4) : number]
        references = " ".join(f"{other}-{name_of(other)}" for other in others)
        yield text.replace("References: \n", f"References: {references}\n").encode()

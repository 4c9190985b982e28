"""A cache on disk whose NARs lie in packs, and where in them."""

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.layout import Layout
from nixcache_oci.oci.digest import Digest
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish
from tests.support.segments import read_table


@dataclass(frozen=True, slots=True)
class PackedCache:
    """A cache of packs, each published by itself, with two NARs in each.

    Attributes:
        folder: its ``cache`` is the OCI layout.
        narinfos: request targets, one for each pack: that of its second NAR.
        nars: where these NARs lie.
    """

    folder: Path
    narinfos: list[str]
    nars: list[NarUrl]

    @property
    def packs(self) -> list[Digest]:
        """Their digests."""
        return [nar.blob for nar in self.nars]

    @property
    def slices(self) -> list[str]:
        """Request targets of the NARs."""
        return [f"/{nar}" for nar in self.nars]

    def file_of(self, pack: Digest) -> Path:
        """Where a pack lies."""
        return self.folder / "cache" / "blobs" / "sha256" / pack.hex

    def content_of(self, nar: NarUrl) -> bytes:
        """What a request for a NAR is to be answered with."""
        start, length = nar.offset or 0, nar.length or 0
        return self.file_of(nar.blob).read_bytes()[start : start + length]

    def spoil(self, pack: Digest) -> None:
        """Change a pack's last byte."""
        content = bytearray(self.file_of(pack).read_bytes())
        content[-1] ^= 1
        self.file_of(pack).write_bytes(content)


def publish_packs(folder: Path, *, count: int, nar_bytes: int = 100) -> PackedCache:
    """Publish so many packs; the bytes of their NARs are random, and the same each time."""
    cache = PackedCache(folder, [], [])
    chance = random.Random(0)  # no secret

    async def run() -> None:
        repository = Layout(folder / "cache")
        for number in range(count):
            seeds = [f"{number}-{part}" for part in ("one", "two")]
            objects = [store_object(seed, contents=chance.randbytes(nar_bytes)) for seed in seeds]
            table = await read_table(repository, (await publish(repository, objects)).table)
            [url] = [one.url for one in table.narinfos if one.store_path.hash_part == hash_part_of(seeds[1])]
            cache.narinfos.append(f"/{hash_part_of(seeds[1])}.narinfo")
            cache.nars.append(NarUrl.parse(url))

    asyncio.run(run())
    return cache

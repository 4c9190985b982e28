"""A pack cache over a slow repository."""

import asyncio

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.packs.prefetch import Prefetch
from nixcache_oci.proxy.verified import Quarantine
from tests.support.process import until
from tests.support.slow_repository import SlowRepository

PACK_BYTES = 1000  # the largest one, here
IN_FLIGHT, AHEAD = 6, 3  # so many of those
AT_ONCE = 32


class Bench:
    """A pack cache over a slow repository, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.repository = SlowRepository()
        self.quarantine = Quarantine(lambda: self.now)
        self.counters = Counters()
        self.cache = PackCache(
            self.repository,
            self.quarantine,
            self.counters,
            PackBudget(IN_FLIGHT * PACK_BYTES, AT_ONCE),
            lambda: self.now,
        )

    def add(self, name: str) -> Digest:
        """Put a pack of the largest size in."""
        return self.repository.add(content_of(name))

    def prefetch(self, pack: Digest) -> None:
        """Have a pack fetched ahead that is one NAR."""
        size = len(self.repository.blobs.get(pack, bytes(PACK_BYTES)))
        self.cache.prefetch(prefetch_of(pack, 0, size, NixHash(bytes.fromhex(pack.hex))))

    async def get(self, pack: Digest) -> bytes:
        """Ask for all of a pack."""
        return await self.cache.cut_out(pack, 0, len(self.repository.blobs.get(pack, b"?")))

    def cached(self, pack: Digest) -> memoryview | None:
        """Ask for all of a pack, if it is here."""
        return self.cache.cached(pack, 0, PACK_BYTES)

    async def sweep(self) -> None:
        """Let so much time pass that all is forgotten that nobody used."""
        self.now += 200
        swept = self.cache._sweeping
        await until(lambda: self.cache._sweeping is not swept)


def prefetch_of(pack: Digest, start: int, end: int, file_hash: NixHash) -> Prefetch:
    """Make what a narinfo of a part of a pack asks for."""
    return Prefetch(pack, end - start, (start, end), str(file_hash).encode())


def content_of(name: str) -> bytes:
    return name.encode().ljust(PACK_BYTES)


async def settle() -> None:
    """Let everything run that can, on threads too."""
    for _ in range(3):
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.to_thread(int)


async def displaced(bench: Bench, name: str) -> Digest:
    """Have a pack fetched, and then so many others that it had to go."""
    pack = bench.add(name)
    await bench.get(pack)
    for number in range(IN_FLIGHT):
        await bench.get(bench.add(f"other {number}"))
    bench.repository.opened.clear()
    return pack

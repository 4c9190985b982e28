"""What gives NARs to clients, over a repository whose downloads end when the test says so."""

from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.quarantine import Quarantine
from tests.support.slow_repository import SlowRepository


class NarBench:
    """A source, and what it was made of; close it."""

    def __init__(self) -> None:
        self.repository = SlowRepository()
        self.quarantine = Quarantine()
        self.counters = Counters()
        self.packs = PackCache(self.repository, self.quarantine, self.counters, 2**28)
        self.generation = object()
        self.nars = NarSource(self.repository, self.packs, self.quarantine, lambda: self.generation)

    async def close(self) -> None:
        """Let every download end."""
        self.repository.gate.set()
        await self.nars.close()
        await self.packs.close()

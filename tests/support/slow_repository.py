"""A repository whose downloads end when the test says so: to look at what happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nixcache_oci.clients.repository import BlobStream, StoredManifest
from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.verified import Quarantine

AT_ONCE = 4
"""That a pack cache here fetches ahead."""


class SlowRepository:
    """Holds blobs in memory; ``gate`` lets downloads end.

    Attributes:
        opened: digest of each download, in order.
        extents: the same with start and end of what was asked for; None where that was the whole blob.
        gate: while it is not set, every download waits.
        before_gate: bytes that each download gives before it waits.
        broken: what every download fails of behind the gate.
        running: downloads that are under way.
        at_gate: downloads that came so far, what was before it having been taken.
        error: what every request for a blob fails of.
    """

    name = "slow"
    can_list_untagged = True
    keeps_listed = False

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.opened: list[Digest] = []
        self.extents: list[tuple[Digest, tuple[int, int | None] | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.before_gate = 0
        self.broken: Exception | None = None
        self.running = 0
        self.at_gate = 0
        self.error: Exception | None = None

    def add(self, content: bytes) -> Digest:
        """Put a blob in."""
        digest = Digest.of(content)
        self.blobs[digest] = content
        return digest

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        self.opened.append(digest)
        self.extents.append((digest, None if (start, end) == (0, None) else (start, end)))
        self._fail()
        if digest not in self.blobs:
            raise NotFoundError(f"no blob {digest}")
        content = self.blobs[digest]
        stop = len(content) if end is None else end

        async def chunks() -> AsyncIterator[bytes]:
            at_gate = min(start + self.before_gate, stop)
            if at_gate > start:
                yield content[start:at_gate]
            self.at_gate += 1
            await self.gate.wait()
            if self.broken is not None:
                raise self.broken
            yield content[at_gate:stop]

        self.running += 1
        try:
            yield BlobStream(len(content), start, stop, chunks())
        finally:
            self.running -= 1

    async def stat_blob(self, digest: Digest) -> int:
        self.opened.append(digest)
        await self.gate.wait()
        self._fail()
        if digest not in self.blobs:
            raise NotFoundError(f"no blob {digest}")
        return len(self.blobs[digest])

    async def resolve(self, tag_or_digest: str) -> Digest:
        raise NotFoundError(tag_or_digest)

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        raise NotFoundError(tag_or_digest)

    async def list_tags(self) -> list[str]:
        return []

    def prepare_push(self, count: int) -> None:
        """Nothing is to be waited for."""

    async def push_blob(self, digest: Digest, source: object) -> None:
        raise NotImplementedError

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        raise NotImplementedError

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Nothing is open."""


class NarBench:
    """A source, and what it was made of; close it."""

    def __init__(self) -> None:
        self.repository = SlowRepository()
        self.quarantine = Quarantine()
        self.counters = Counters()
        self.packs = PackCache(self.repository, self.quarantine, self.counters, PackBudget(2**28, AT_ONCE))
        self.generation = object()
        self.nars = NarSource(self.repository, self.packs, self.quarantine, lambda: self.generation)

    async def close(self) -> None:
        """Let every download end."""
        self.repository.gate.set()
        await self.nars.close()
        await self.packs.close()

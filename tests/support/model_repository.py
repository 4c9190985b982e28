"""A repository as a model: no compare-and-swap on tags, and a hook before each step."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from nixcache_oci.clients.repository import BlobStream, StoredManifest
from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import parse_media_type


class ModelStorage:
    """What all clients of one repository share."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[Digest, bytes] = {}
        self.tags: dict[str, Digest] = {}


class ModelRepository:
    """One client's view.

    Args:
        storage: shared with the other clients.
        before: is awaited before each step, with its name; what it raises ends the client there.
    """

    name = "model"
    can_list_untagged = True
    keeps_listed = False

    def __init__(self, storage: ModelStorage, before: Callable[[str], Awaitable[None]]) -> None:
        self._storage = storage
        self._before = before

    async def resolve(self, tag_or_digest: str) -> Digest:
        await self._before(f"resolve {tag_or_digest}")
        digest = self._storage.tags.get(tag_or_digest)
        if digest is None and tag_or_digest.startswith("sha256:"):
            digest = Digest.parse(tag_or_digest)
        if digest not in self._storage.manifests:
            raise NotFoundError(f"no manifest {tag_or_digest}")
        return digest

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        digest = await self.resolve(tag_or_digest)
        content = self._storage.manifests[digest]
        return StoredManifest(content, parse_media_type(content), digest)

    async def list_tags(self) -> list[str]:
        await self._before("list tags")
        if not self._storage.tags:
            raise NotFoundError("no such repository")
        return list(self._storage.tags)

    async def stat_blob(self, digest: Digest) -> int:
        await self._before(f"stat {digest}")
        if digest not in self._storage.blobs:
            raise NotFoundError(f"no blob {digest}")
        return len(self._storage.blobs[digest])

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        size = await self.stat_blob(digest)
        stop = size if end is None else end

        async def chunks() -> AsyncIterator[bytes]:
            yield self._storage.blobs[digest][start:stop]

        yield BlobStream(size, start, stop, chunks())

    def prepare_push(self, count: int) -> None:
        """Nothing is to be waited for."""

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        await self._before(f"push blob {digest}")
        assert isinstance(source, bytes), "the model holds small things"
        self._storage.blobs[digest] = source

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        await self._before(f"push manifest {tag_or_digest} {media_type}")
        digest = Digest.of(content)
        self._storage.manifests[digest] = content
        if not tag_or_digest.startswith("sha256:"):
            self._storage.tags[tag_or_digest] = digest
        return digest

    async def close(self) -> None:
        """Nothing is open."""

"""One repository of OCI blobs, manifests and tags: what all else is written against.

Implemented by ``registry`` (HTTP, the OCI distribution specification) and ``layout`` (a folder, the OCI
image layout). Errors are ours alone: ``RegistryError`` and ``NotFoundError``, never a library's.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or image index as the repository holds it.

    Attributes:
        content: the exact bytes, checked against ``digest``.
        media_type: as the repository states it.
        digest: what the bytes hash to.
    """

    content: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class BlobStream:
    """An open blob, or a part of it.

    Attributes:
        size: bytes in the whole blob.
        start: offset of the first byte that ``chunks`` yields.
        end: offset behind the last one.
        chunks: the bytes; nothing is verified. A connection that breaks raises a temporary RegistryError.
        check: hashes the whole blob, before its bytes are used; a DigestError if it is not what its digest
            says. None where it would have to be downloaded for that.
    """

    size: int
    start: int
    end: int
    chunks: AsyncIterator[bytes]
    check: Callable[[], Awaitable[None]] | None = None


class Repository(Protocol):
    """Blobs and manifests named by digest, tags that point at manifests.

    Every method raises RegistryError; NotFoundError is only raised when the repository itself said that it
    holds no such thing.
    """

    @property
    def name(self) -> str:
        """Where it is, for people: ``ghcr.io/owner/name/nix-cache`` or ``oci:/path``."""

    async def resolve(self, tag_or_digest: str) -> Digest:
        """Tell which manifest a tag points at, without fetching it."""

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        """Fetch a manifest or image index, at most 4 MiB; bytes that a digest does not name are an error."""

    async def list_tags(self) -> list[str]:
        """List every tag, in no particular order; an incomplete list is an error.

        A repository that does not exist yet raises NotFoundError.
        """

    async def stat_blob(self, digest: Digest) -> int:
        """Tell a blob's size in bytes."""

    def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes.

        Opening is retried; a stream that breaks later is the caller's to resume.
        """

    def prepare_push(self, count: int) -> None:
        """Begin what the next calls of ``push_blob`` would have to wait for: so many will come soon."""

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Store a blob whose bytes are already known to have this digest; one that is there is no error."""

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        """Store a manifest or image index, and point the tag at it where one is given."""

    async def close(self) -> None:
        """Give connections and files back."""


async def has_manifest(repository: Repository, tag_or_digest: Digest | str) -> bool:
    """Tell whether a manifest, image index or tag is there, without fetching it.

    Raises:
        RegistryError: the repository could not say.
    """
    try:
        await repository.resolve(str(tag_or_digest))
    except NotFoundError:
        return False
    return True

"""The interface of one repository of OCI blobs, manifests and tags, and of what removes from it.

``Repository`` is implemented by ``registry`` (HTTP, the OCI distribution specification) and ``layout`` (a
folder, the OCI image layout). ``Remover`` is implemented by ``registry.client`` (OCI DELETE),
``github.packages`` (GitHub's REST API, for GHCR refuses the former) and ``layout_sweep`` (files); what may be
removed is the caller's to decide.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or image index as the repository holds it."""

    content: bytes  # the exact bytes, checked against ``digest``
    media_type: str  # as the repository states it
    digest: Digest  # of the content


@dataclass(frozen=True, slots=True)
class BlobStream:
    """An open blob, or a part of it."""

    size: int  # of the whole blob, in bytes
    start: int  # offset of the first byte that ``chunks`` yields
    end: int  # offset after the last one
    # The bytes, unverified; raises a temporary RegistryError if the connection breaks.
    chunks: AsyncIterator[bytes]
    # Hashes the whole blob before its bytes are used; raises DigestError if it does not match its digest.
    # None where that would need a download.
    check: Callable[[], Awaitable[None]] | None = None


class Repository(Protocol):
    """Blobs and manifests named by digest, and tags that point at manifests.

    Every method raises RegistryError, and NotFoundError only if the repository itself said that it has no
    such thing. No library's errors pass through.
    """

    @property
    def name(self) -> str:
        """Where it is, for people: ``ghcr.io/owner/name/nix-cache`` or ``oci:/path``."""

    @property
    def can_list_untagged(self) -> bool:
        """Whether its ``Remover`` finds what no tag points at; elsewhere the index has to remember it."""

    @property
    def keeps_listed(self) -> bool:
        """Whether it is known to delete no manifest that an image index lists."""

    async def resolve(self, tag_or_digest: str) -> Digest:
        """Return the digest of the manifest that a tag points at, without fetching it."""

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        """Fetch a manifest or image index, at most 4 MiB; bytes that do not match its digest are an error."""

    async def list_tags(self) -> list[str]:
        """List every tag, in no particular order; an incomplete list is an error.

        A repository that does not exist yet raises NotFoundError.
        """

    async def stat_blob(self, digest: Digest) -> int:
        """Return a blob's size in bytes."""

    def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes.

        Opening is retried; a stream that breaks later is the caller's to resume.
        """

    def prepare_push(self, count: int) -> None:
        """Prepare for ``count`` calls of ``push_blob`` that will come soon: saves a round trip."""

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Store a blob whose bytes are known to have this digest; one that is already there is no error."""

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        """Store a manifest or image index, and point the tag at it if one is given."""

    async def close(self) -> None:
        """Close all connections and files."""


async def has_manifest(repository: Repository, tag_or_digest: Digest | str) -> bool:
    """Tell whether a manifest or tag exists, without fetching it; RegistryError if that is unknown."""
    try:
        await repository.resolve(str(tag_or_digest))
    except NotFoundError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class UntaggedVersion:
    """A manifest that no tag points at."""

    digest: Digest  # of the manifest
    created: datetime  # when the repository took it, with a time zone


class Remover(Protocol):
    """Removes manifests for good."""

    async def remove(self, manifest: Digest, tags: Iterable[str] = ()) -> None:
        """Remove a manifest and its tags; a missing one is no error.

        Some repositories want to have the tags removed first, and then have to be told which it may have.

        Raises RegistryError if it was refused: then it is kept, and others may still be removable;
        ReferencedError if that is because an image index lists it: its tags may be gone.
        """

    async def untagged(self) -> list[UntaggedVersion]:
        """List the manifests without a tag; empty if the repository cannot say."""

    async def close(self) -> None:
        """Close all connections."""

"""A repository in a registry, over HTTP.

Source: OCI distribution specification 1.1, with GHCR's deviations.
"""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, suppress
from http import HTTPStatus
from pathlib import Path

from yarl import URL

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.credentials import CredentialSource
from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.public_address import IsPublic, is_public
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.retry import RetryPolicy
from nixcache_oci.clients.registry.blobs import NEEDS_REASON, Downloads
from nixcache_oci.clients.registry.removal import delete_manifest, keeps_listed
from nixcache_oci.clients.registry.tags import Tags
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.registry.uploads import Uploads
from nixcache_oci.clients.repository import BlobStream, StoredManifest, UntaggedVersion
from nixcache_oci.errors import DigestError, FormatError, NotFoundError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_INDEXES, MANIFESTS
from nixcache_oci.oci.reference import RegistryReference, parse_tag_or_digest

_MEDIA_TYPES = (*IMAGE_INDEXES, *MANIFESTS)
_ACCEPT = {"Accept": ", ".join(_MEDIA_TYPES)}
_MANIFEST_LIMIT = 4 * 1024 * 1024  # bytes
_PUSHES_KNOWN = 4_096

_FOUND = frozenset({HTTPStatus.OK})
_STORED = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED})


class Registry:
    """One repository in a registry; implements ``Repository``, with its errors.

    The first call opens connections, in the event loop that runs it; ``close`` closes them.

    Args:
        reference: of the repository.
        credentials: their source, or None for anonymous.
        push: whether to ask for the right to push; a token without it is then refused at once.
        delete: whether to ask for the right to delete, likewise.
        can_list_untagged: see ``Repository``.
        patience: seconds that one operation may take with all retries, without transmission.
        stall_seconds: how long a connection may make no progress.
        attempts: most tries of an operation; only patience bounds them during a rate limit.
        first_backoff_seconds: the longest wait after the first failure; doubles with each try.
        is_public: tells whether an IP address is public. What a public registry names must be public, too.
        is_guarded: whether the registry itself must be at a public address, because a stranger named it.
    """

    def __init__(
        self,
        reference: RegistryReference,
        credentials: CredentialSource | None,
        *,
        push: bool = False,
        delete: bool = False,
        can_list_untagged: bool = False,
        patience: float,
        stall_seconds: float = 30,
        attempts: int = 5,
        first_backoff_seconds: float = 0.5,
        is_public: IsPublic = is_public,
        is_guarded: bool = False,
    ) -> None:
        self._reference = reference
        self._can_list_untagged = can_list_untagged
        self._base = f"{reference.base_url}/v2/{reference.repository}"
        self._transport = Transport(
            reference,
            credentials,
            push=push,
            delete=delete,
            policy=RetryPolicy(attempts, patience, first_backoff_seconds),
            stall_seconds=stall_seconds,
            is_public=is_public,
            is_guarded=is_guarded,
        )
        # Just after a push a registry may not know it yet: a 404 for these is retried.
        self._pushed: BoundedCache[str, None] = BoundedCache(_PUSHES_KNOWN)
        self._uploads = Uploads(self._transport, self._base)
        self._tags = Tags(self._transport, self._base)
        self._downloads = Downloads(self._transport, self._base, self._pushed)

    @property
    def name(self) -> str:
        """Where it is, for people: ``ghcr.io/owner/name/nix-cache``."""
        return str(self._reference)

    @property
    def can_list_untagged(self) -> bool:
        """Whether its remover lists what has no tag, as GitHub's API does."""
        return self._can_list_untagged

    @property
    def keeps_listed(self) -> bool:
        """Whether its challenge was of a registry that deletes nothing that an image index lists."""
        challenge = self._transport.challenge
        return challenge is not None and keeps_listed(challenge.parameters)

    async def close(self) -> None:
        """Close all connections."""
        await self._uploads.ahead.close()
        await self._transport.close()

    # Manifests and tags

    async def resolve(self, tag_or_digest: str) -> Digest:
        """Return the digest of a tag's manifest, by HEAD if the registry's answer to that suffices."""
        call = self._manifest_call("resolve", tag_or_digest, "HEAD", _FOUND | NEEDS_REASON)
        answer = await self._transport.fetch(call)
        if answer.status == HTTPStatus.OK:
            digest = _stated_digest(answer)
            if digest is not None:
                return digest
        return (await self.get_manifest(tag_or_digest)).digest

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        """Fetch a manifest or image index, at most 4 MiB, and check its bytes."""
        call = self._manifest_call("get", tag_or_digest, "GET", _FOUND)
        asked = parse_tag_or_digest(tag_or_digest)
        return await self._transport.fetch_parsed(
            call,
            _MANIFEST_LIMIT + 1,
            lambda answer: _read_manifest(answer, asked if isinstance(asked, Digest) else None),
        )

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        """Store a manifest or image index."""
        digest = Digest.of(content)
        asked = parse_tag_or_digest(tag_or_digest)
        if isinstance(asked, Digest):
            asked.check(content)
        call = Call(
            f"push manifest {tag_or_digest}",
            "PUT",
            self._url(f"/manifests/{tag_or_digest}"),
            headers={"Content-Type": media_type},
            body=Body.of(content),
            accepts=_STORED,
            is_expected=bool(self._pushed),  # blobs that were just pushed may not be known yet
            is_verified=True,
        )
        answer = await self._transport.fetch(call)
        stated = _stated_digest(answer)
        if stated not in {None, digest}:
            raise self._transport.error(
                call,
                f"it was stored as {stated}, but its bytes have the digest {digest}",
                status=answer.status,
            )
        self._pushed.put(tag_or_digest, None)
        self._pushed.put(str(digest), None)
        return digest

    async def delete_manifest(self, digest: Digest, tags: Iterable[str] = ()) -> None:
        """Delete a manifest and its tags; see ``removal`` for what registries refuse."""
        await delete_manifest(self._transport, self._base, digest, tags, self.list_tags)

    @property
    def has_own_page_size(self) -> bool:
        """Whether the registry refused pages of 1,000 tags, and chose their size itself."""
        return self._tags.has_own_size

    async def list_tags(self) -> list[str]:
        """List every tag, in no particular order; see ``Tags.list`` for its limits."""
        return await self._tags.list()

    # Blobs

    async def stat_blob(self, digest: Digest) -> int:
        """Return a blob's size in bytes."""
        return await self._downloads.stat(digest)

    def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes."""
        return self._downloads.open(digest, start, end)

    def prepare_push(self, count: int) -> None:
        """Start to open upload sessions for the next blobs."""
        self._uploads.ahead.prepare(count)

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Store a blob whose bytes are known to have this digest."""
        await self._uploads.push(digest, Body.of(source))
        self._pushed.put(str(digest), None)

    def _manifest_call(self, verb: str, tag_or_digest: str, method: str, accepts: frozenset[int]) -> Call:
        parse_tag_or_digest(tag_or_digest)
        return Call(
            f"{verb} manifest {tag_or_digest}",
            method,
            self._url(f"/manifests/{tag_or_digest}"),
            headers=_ACCEPT,
            accepts=accepts,
            is_expected=tag_or_digest in self._pushed,
            may_be_absent=True,
        )

    def _url(self, path: str) -> URL:
        return URL(self._base + path, encoded=True)


class RegistryRemover:
    """Deletes manifests at any registry but GitHub's; implements ``Remover``.

    Its registry is a separate client, which asks for the right to delete: a token service may refuse such a
    request as a whole, which must not affect pushing. Closed with this.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def remove(self, manifest: Digest, tags: Iterable[str] = ()) -> None:
        """Delete a manifest, and the tags that point at it."""
        with suppress(NotFoundError):
            await self._registry.delete_manifest(manifest, tags)

    async def untagged(self) -> list[UntaggedVersion]:
        """Return none: the specification has no way to ask."""
        return []

    async def close(self) -> None:
        """Close all connections."""
        await self._registry.close()


def _read_manifest(answer: BufferedReply, asked: Digest | None) -> StoredManifest:
    if len(answer.body) > _MANIFEST_LIMIT:
        raise _unusable(answer, f"it is larger than {_MANIFEST_LIMIT} bytes", is_final=True)
    digest = asked or _stated_digest(answer)
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    if digest is None:  # without a digest to check, the media type at least rules out a login page
        if media_type not in _MEDIA_TYPES:
            raise _unusable(answer, f"{media_type!r} came, which was not asked for")
        digest = Digest.of(answer.body)
    try:
        digest.check(answer.body)
    except DigestError as error:
        raise _unusable(answer, str(error)) from error
    return StoredManifest(answer.body, media_type, digest)


def _unusable(answer: BufferedReply, reason: str, *, is_final: bool = False) -> HttpError:
    return HttpError(Failure(answer.status), reason, is_final=is_final)


def _stated_digest(answer: BufferedReply) -> Digest | None:
    """Read Docker-Content-Digest; None if it is missing, or no sha256 digest."""
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except FormatError:
        return None

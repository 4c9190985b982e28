"""A repository in a registry, over HTTP.

Source: OCI distribution specification 1.1, with GHCR's deviations.
"""

import json
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic

from yarl import URL

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.credentials import CredentialSource
from nixcache_oci.clients.http.errors import Failure, HttpError, parse_error, translated
from nixcache_oci.clients.http.one_origin import join
from nixcache_oci.clients.http.public_address import IsPublic, is_public
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.retry import RetryPolicy
from nixcache_oci.clients.http.url import find_next
from nixcache_oci.clients.registry.blobs import NEEDS_REASON, Downloads, SessionsAhead, push_blob
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.repository import BlobStream, StoredManifest, UntaggedVersion
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_INDEXES, MANIFESTS
from nixcache_oci.oci.reference import RegistryReference, parse_tag_or_digest
from nixcache_oci.wording import counted

_MEDIA_TYPES = (*IMAGE_INDEXES, *MANIFESTS)
_ACCEPT = {"Accept": ", ".join(_MEDIA_TYPES)}
_MANIFEST_LIMIT = 4 * 1024 * 1024  # bytes
_TAGS_ASKED = 10_000  # on a page
# Of a whole list of tags, over all pages. A cache has some dozen segments.
_MOST_TAG_BYTES = 16 * 1024 * 1024
_MOST_TAGS = 100_000
_MOST_TAG_PAGES = 1_000
_MOST_TAG_SECONDS = 600
_MOST_OTHER_COMMAS = 16  # on a page, for its name and whatever a registry adds
_PUSHES_KNOWN = 4_096

_FOUND = frozenset({HTTPStatus.OK})
_STORED = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED})
_DELETED = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.NO_CONTENT})
_DISABLED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED})
_DENIED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class Registry:
    """One repository in a registry; implements ``Repository``, with its errors.

    The first call opens connections, in the event loop that runs it; ``close`` closes them.

    Args:
        reference: of the repository.
        credentials: their source, or None for anonymous.
        push: whether to ask for the right to push; a token without it is then refused at once.
        delete: whether to ask for the right to delete, likewise.
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
        patience: float,
        stall_seconds: float = 30,
        attempts: int = 5,
        first_backoff_seconds: float = 0.5,
        is_public: IsPublic = is_public,
        is_guarded: bool = False,
    ) -> None:
        self._reference = reference
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
        self._sessions_ahead = SessionsAhead(self._transport, self._base)
        self._downloads = Downloads(self._transport, self._base, self._pushed)

    @property
    def name(self) -> str:
        """Where it is, for people: ``ghcr.io/owner/name/nix-cache``."""
        return str(self._reference)

    async def close(self) -> None:
        """Close all connections."""
        await self._sessions_ahead.close()
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

    async def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and its tags; its blobs go when the registry collects garbage.

        Raises NotFoundError if there is no such manifest; RegistryError if the registry does not delete it.
        """
        call = Call(
            f"delete manifest {digest}",
            "DELETE",
            self._url(f"/manifests/{digest}"),
            accepts=_DELETED | _DISABLED,
            may_be_absent=True,
        )
        try:
            answer = await self._transport.fetch(call)
        except NotFoundError:
            raise
        except RegistryError as error:
            if error.status not in _DENIED:
                raise
            text = f"{error}; the right to delete is separate from the right to push"
            raise RegistryError(text, status=error.status, code=error.code) from None
        if answer.status in _DISABLED:
            code, message = parse_error(answer.body)
            said = " ".join(filter(None, (str(answer.status), code, f"({message})" if message else "")))
            raise self._transport.error(
                call,
                f"this registry does not delete: {said}; its owner has to enable it (docker-registry:"
                " storage.delete.enabled: true, or REGISTRY_STORAGE_DELETE_ENABLED=true);"
                " it is kept until then",
                status=answer.status,
            )

    async def list_tags(self) -> list[str]:
        """List every tag, in no particular order.

        A list of over 100,000 tags, 16 MiB, 1,000 pages or ten minutes is an error, and never cut.
        """
        url: URL | None = self._url(f"/tags/list?n={_TAGS_ASKED}")
        tags: dict[str, None] = {}
        seen: set[URL] = set()
        room = _MOST_TAG_BYTES
        deadline = monotonic() + _MOST_TAG_SECONDS
        while url is not None:
            call = Call("list tags", "GET", url, may_be_absent=not seen)
            if url in seen or len(seen) == _MOST_TAG_PAGES or monotonic() > deadline:
                raise self._transport.error(call, f"the list does not end after {counted(len(seen), 'page')}")
            seen.add(url)
            page, answer = await self._transport.fetch_parsed(
                call, room + 1, partial(_read_tags, room=room, most=_MOST_TAGS - len(tags))
            )
            tags.update(dict.fromkeys(page))
            room -= len(answer.body)
            try:
                with translated():
                    url = _next_page(answer, url)
            except (FormatError, HttpError) as error:
                raise self._transport.error(call, str(error), status=answer.status) from error
        return list(tags)

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
        self._sessions_ahead.prepare(count)

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Store a blob whose bytes are known to have this digest."""
        await push_blob(self._transport, self._base, digest, Body.of(source), self._sessions_ahead)
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

    async def remove(self, manifest: Digest) -> None:
        """Delete a manifest, and the tags that point at it."""
        with suppress(NotFoundError):
            await self._registry.delete_manifest(manifest)

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


def _read_tags(answer: BufferedReply, *, room: int, most: int) -> tuple[list[str], BufferedReply]:
    """Read one page, of at most ``room`` bytes and ``most`` tags; HttpError if it is larger, or no list."""
    if len(answer.body) > room:
        raise _unusable(answer, f"the list has over {_MOST_TAG_BYTES} bytes", is_final=True)
    # Counted before parsing, which cannot be interrupted.
    if answer.body.count(b",") > most + _MOST_OTHER_COMMAS:
        raise _unusable(answer, f"the list has over {_MOST_TAGS} tags", is_final=True)
    try:
        return parse_tags(answer.body), answer
    except FormatError as error:
        raise _unusable(answer, str(error)) from error


def parse_tags(body: bytes) -> list[str]:
    """Read the tags of one page; FormatError if this is no list of tags."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise FormatError("the list of tags is not JSON") from None  # what came is not worth showing
    if not isinstance(document, dict) or "tags" not in document:
        raise FormatError("the list of tags has no tags")
    tags = document["tags"]
    if tags is None:  # Go's way to write an empty list
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise FormatError("the list of tags contains something else")
    return tags


def _unusable(answer: BufferedReply, reason: str, *, is_final: bool = False) -> HttpError:
    return HttpError(Failure(answer.status), reason, is_final=is_final)


def _stated_digest(answer: BufferedReply) -> Digest | None:
    """Read Docker-Content-Digest; None if it is missing, or no sha256 digest."""
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except FormatError:
        return None


def _next_page(answer: BufferedReply, url: URL) -> URL | None:
    """Find the next page; FormatError at another server, for only the registry itself knows its tags."""
    target = find_next(answer.headers.getall("Link", []))
    if target is None:
        return None
    following = join(url, target)
    if following.origin() != url.origin():
        raise FormatError(f"the list of tags continues at another server, {following.origin()}")
    return following

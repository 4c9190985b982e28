"""Blobs: sizes, unverified streams, and uploads.

An upload opens a session, and one PUT sends and commits everything. A failed session is abandoned: GHCR may
then say that it is unknown, whether it stored the blob or not. So the blob is looked for first; then a new
session is opened.

Source: OCI distribution specification, "Pushing a blob monolithically", POST then PUT.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from time import monotonic
from typing import Final

from yarl import URL

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.http.errors import Failure, HttpError, translated
from nixcache_oci.clients.http.one_origin import join
from nixcache_oci.clients.http.ranges import Extent, read_extent, read_length, read_size, render_range
from nixcache_oci.clients.http.reply import ERROR_LIMIT, BufferedReply, Reply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.retry import GiveUp
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# Answers to HEAD for a blob that is there; redirects are not followed, because the storage may refuse HEAD.
PRESENT = frozenset({HTTPStatus.OK, HTTPStatus.FOUND, HTTPStatus.TEMPORARY_REDIRECT})
# Their reason is in the body, which an answer to HEAD does not have.
NEEDS_REASON = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})

_PART = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT})
_PART_OR_NONE = _PART | {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
_SIZES_KNOWN = 4_096


class Downloads:
    """The blobs of one repository, whose URL is ``base``: ``https://ghcr.io/v2/owner/name/nix-cache``.

    A registry may not see digests in ``pushed`` yet. Methods raise RegistryError, and NotFoundError if there
    is no such blob.
    """

    def __init__(self, transport: Transport, base: str, pushed: BoundedCache[str, None]) -> None:
        self._transport = transport
        self._base = base
        self._pushed = pushed
        self._sizes: BoundedCache[Digest, int] = BoundedCache(_SIZES_KNOWN)

    async def stat(self, digest: Digest) -> int:
        """Return a blob's size in bytes, by HEAD if the registry's answer to that suffices."""
        call = self._call("look for", digest, "HEAD", PRESENT | NEEDS_REASON)
        answer = await self._transport.fetch(call)
        length = read_length(answer.headers)
        if answer.status == HTTPStatus.OK and length is not None:
            return self._remember(digest, length)
        if answer.status == HTTPStatus.NOT_FOUND and not call.is_expected and _is_from_registry(answer):
            cause = HttpError(Failure(answer.status), "404 BLOB_UNKNOWN", code="BLOB_UNKNOWN")
            raise self._transport.explain(call, cause, GiveUp(is_temporary=False))
        call = self._call("look for", digest, "GET", _PART_OR_NONE, "bytes=0-0")
        reply = await self._transport.open(call)
        try:
            size = read_size(reply.status, reply.headers)
            if reply.status != HTTPStatus.OK:  # else it is the whole blob
                with suppress(HttpError):  # read only to keep the connection
                    await reply.read(ERROR_LIMIT)
        except FormatError as error:
            raise self._transport.error(call, str(error), status=reply.status) from error
        finally:
            reply.close()
        return self._remember(digest, size)

    @asynccontextmanager
    async def open(self, digest: Digest, start: int, end: int | None) -> AsyncIterator[BlobStream]:
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes."""
        if end is None and start:
            end = await self._size(digest)
        call = self._call("get", digest, "GET", _PART)
        if start < 0 or (end is not None and start >= end):
            size = await self._size(digest)
            if start != end or not 0 <= start <= size:
                raise self._transport.error(call, f"there are no bytes {start} to {end} in {size}")
            yield BlobStream(size, start, start, _nothing())
            return
        if end is not None:
            call = self._call("get", digest, "GET", _PART, render_range(start, end))
        reply = await self._transport.open(call)
        try:
            try:
                extent = read_extent(reply.status, reply.headers, start, end)
            except FormatError as error:
                raise self._transport.error(call, str(error), status=reply.status) from error
            self._remember(digest, extent.size)
            async with aclosing(self._chunks(call, reply, extent)) as chunks:
                yield BlobStream(extent.size, extent.start, extent.end, chunks)
        finally:
            reply.close()

    async def _chunks(self, call: Call, reply: Reply, extent: Extent) -> AsyncGenerator[bytes, None]:
        skip, left = extent.skip, extent.end - extent.start
        async with aclosing(reply.chunks()) as chunks:
            try:
                async for chunk in chunks:
                    piece = chunk
                    if skip:
                        piece, skip = chunk[skip:], max(0, skip - len(chunk))
                    if len(piece) > left:
                        piece = piece[:left]
                    left -= len(piece)
                    if piece:
                        yield piece
                    if not left:
                        return
            except HttpError as cause:
                raise self._transport.explain(call, cause, GiveUp(is_temporary=True)) from None
        if left:
            raise self._transport.error(
                call, f"the answer ended {counted(left, 'byte')} early", is_temporary=True
            )

    async def _size(self, digest: Digest) -> int:
        size = self._sizes.get(digest)
        return await self.stat(digest) if size is None else size

    def _remember(self, digest: Digest, size: int) -> int:
        self._sizes.put(digest, size)
        return size

    def _call(
        self, verb: str, digest: Digest, method: str, accepts: frozenset[int], range_header: str | None = None
    ) -> Call:
        return Call(
            f"{verb} blob {digest}",
            method,
            URL(f"{self._base}/blobs/{digest}", encoded=True),
            headers={} if range_header is None else {"Range": range_header},
            follows=method != "HEAD",
            accepts=accepts,
            is_expected=str(digest) in self._pushed,
            may_be_absent=True,
            is_blob=method != "HEAD",
        )


def _is_from_registry(answer: BufferedReply) -> bool:
    """Tell whether an answer without a body looks like a registry's."""
    content_type = answer.headers.get("Content-Type", "")
    return "json" in content_type.lower() or "Docker-Distribution-Api-Version" in answer.headers


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


# GHCR allows an upload ten minutes, within which a blob that takes a session has to be sent.
_SESSION_SECONDS: Final = 60

_OPENED = frozenset({HTTPStatus.ACCEPTED})
_COMMITTED = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})


class SessionsAhead:
    """Upload sessions that are opened before their blobs are ready."""

    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = base
        # Each with the time at which it was asked for, the oldest first.
        self._opened: list[tuple[float, asyncio.Task[BufferedReply | None]]] = []

    def prepare(self, count: int) -> None:
        """Start to open sessions, up to ``count``."""
        while len(self._opened) < count:
            self._opened.append((monotonic(), asyncio.create_task(self._open())))

    async def take(self) -> BufferedReply | None:
        """Return the answer that opened a session; None if there is none, or the registry refused."""
        while self._opened:
            begun, opening = self._opened.pop(0)
            if monotonic() - begun < _SESSION_SECONDS:
                return await opening
        return None

    async def close(self) -> None:
        """Abandon them: registries drop unused sessions."""
        openings = [opening for _, opening in self._opened]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)

    async def _open(self) -> BufferedReply | None:
        try:
            return await self._transport.fetch_once(_opening("open an upload", self._base))
        except HttpError:
            return None  # the blob's own push opens one, with all retries, and reports the error


async def push_blob(
    transport: Transport, base: str, digest: Digest, body: Body, ahead: SessionsAhead | None = None
) -> None:
    """Store a blob; RegistryError if the registry did not accept it.

    The body is read again for every try; ``ahead`` may have a session for the first one.
    """
    operation = f"push blob {digest}"
    opening = _opening(operation, base)
    looking = Call(
        operation, "HEAD", URL(f"{base}/blobs/{digest}", encoded=True), follows=False, accepts=PRESENT
    )
    opened = await ahead.take() if ahead is not None else None
    tries = transport.tries()
    while True:
        if opened is None:
            opened = await transport.fetch(opening)
        committing = opening
        started = monotonic()
        try:
            with translated():
                committing = _commit(opening, opened, digest, body)
            await transport.fetch_once(committing)
        except HttpError as cause:
            opened = None
            end = await tries.wait(cause, transmission=monotonic() - started)
            if (end is None or end.is_temporary) and await _is_there(transport, looking):
                return
            if end is not None:
                raise transport.explain(committing, cause, end) from None  # the reason is in its text
        else:
            return


def _opening(operation: str, base: str) -> Call:
    return Call(operation, "POST", URL(f"{base}/blobs/uploads/", encoded=True), accepts=_OPENED)


def _commit(opening: Call, opened: BufferedReply, digest: Digest, body: Body) -> Call:
    """Make the PUT for a session; its Location is kept byte for byte."""
    url = join(opening.url, opened.headers.get("Location", "")).with_fragment(None)
    separator = "&" if url.raw_query_string else "?"
    return Call(
        opening.operation,
        "PUT",
        URL(f"{url}{separator}digest=sha256%3A{digest.hex}", encoded=True),
        headers={"Content-Type": "application/octet-stream"},
        body=body,
        accepts=_COMMITTED,
        is_guarded=opened.is_public,
        is_expected=True,  # the session exists: 404 means that it was lost
    )


async def _is_there(transport: Transport, looking: Call) -> bool:
    try:
        await transport.fetch_once(looking)
    except HttpError:
        return False  # then the next session decides, or the last error is raised
    return True

"""Blobs: sizes, streams of bytes that are not checked here, and uploads.

An upload opens a session, and one PUT sends everything and commits it. A session that failed is not mended
but left: GHCR may then say that the session is unknown, with the blob there or without it. So a look at the
blob comes first, and then a new session.

Source: OCI distribution specification, "Pushing a blob monolithically", POST then PUT.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from time import monotonic
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.errors import Failure, HttpError, translated
from nixcache_oci.clients.http.one_origin import join
from nixcache_oci.clients.http.ranges import Extent, read_extent, read_length, read_size, render_range
from nixcache_oci.clients.http.reply import ERROR_LIMIT, Answer, Reply
from nixcache_oci.clients.http.retry import GiveUp
from nixcache_oci.clients.http.upload import Body
from nixcache_oci.clients.memo import Memo
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# What a HEAD is answered for a blob that is there; the storage may refuse a HEAD, so nobody goes on to it.
PRESENT = frozenset({HTTPStatus.OK, HTTPStatus.FOUND, HTTPStatus.TEMPORARY_REDIRECT})
# To these two the reason stands in the body, which a HEAD's answer does not have.
NEEDS_REASON = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})

_PART = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT})
_PART_OR_NONE = _PART | {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
_SIZES_KNOWN = 4_096


class Downloads:
    """The blobs of one repository.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://ghcr.io/v2/owner/name/nix-cache``.
        pushed: digests that are known to be there, though the registry may need a moment to see it.
    """

    def __init__(self, transport: Transport, base: str, pushed: Memo[str, None]) -> None:
        self._transport = transport
        self._base = base
        self._pushed = pushed
        self._sizes: Memo[Digest, int] = Memo(_SIZES_KNOWN)

    async def stat(self, digest: Digest) -> int:
        """Tell a blob's size in bytes, by HEAD where the registry's answer to that is enough."""
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
            may_lead_away=method != "HEAD",
            is_blob=method != "HEAD",
        )


def _is_from_registry(answer: Answer) -> bool:
    """Tell whether an answer without a body bears a registry's marks."""
    content_type = answer.headers.get("Content-Type", "")
    return "json" in content_type.lower() or "Docker-Distribution-Api-Version" in answer.headers


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


# GHCR gives an upload ten minutes; a blob that takes up a session has to be sent within them.
_SESSION_SECONDS: Final = 60

_OPENED = frozenset({HTTPStatus.ACCEPTED})
_COMMITTED = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})


class SessionsAhead:
    """Upload sessions that are opened before their blobs are there to be sent.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://ghcr.io/v2/owner/name/nix-cache``.
    """

    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = base
        self._opened: list[tuple[float, asyncio.Task[Answer | None]]] = []  # and when, the oldest first

    def prepare(self, count: int) -> None:
        """Begin to open so many, less those that wait already."""
        while len(self._opened) < count:
            self._opened.append((monotonic(), asyncio.create_task(self._open())))

    async def take(self) -> Answer | None:
        """Give the answer that opened one to a blob; None where there is none, or the registry refused it."""
        while self._opened:
            begun, opening = self._opened.pop(0)
            if monotonic() - begun < _SESSION_SECONDS:
                return await opening
        return None

    async def close(self) -> None:
        """Leave them: registries forget sessions that nothing is sent to."""
        openings = [opening for _, opening in self._opened]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)

    async def _open(self) -> Answer | None:
        try:
            return await self._transport.fetch_once(_opening("open an upload", self._base))
        except HttpError:
            return None  # whoever has a blob to send asks again, with all patience, and is told


async def push_blob(
    transport: Transport, base: str, digest: Digest, body: Body, ahead: SessionsAhead | None = None
) -> None:
    """Store a blob.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://ghcr.io/v2/owner/name/nix-cache``.
        digest: of the bytes.
        body: the bytes, read anew for every try.
        ahead: may have a session for the first try.

    Raises:
        RegistryError: the registry did not take it.
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


def _commit(opening: Call, opened: Answer, digest: Digest, body: Body) -> Call:
    """Make the PUT for a session; what its Location says is kept byte for byte."""
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
        is_expected=True,  # a session that was opened exists: 404 means that it was lost
    )


async def _is_there(transport: Transport, looking: Call) -> bool:
    try:
        await transport.fetch_once(looking)
    except HttpError:
        return False  # the next session, or the error of the last, will tell
    return True

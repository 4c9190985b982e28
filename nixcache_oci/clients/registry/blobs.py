"""Reading blobs: sizes and unverified streams.

Source: OCI distribution specification, "Pulling blobs" and "Checking if content exists in the registry".
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus

from yarl import URL

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.ranges import Extent, read_extent, read_length, read_size, render_range
from nixcache_oci.clients.http.reply import ERROR_LIMIT, BufferedReply, Reply
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

"""A NAR from an upstream: its head, and a body that resumes when the connection breaks."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from yarl import URL

from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.content_coding import Decoder, is_coded
from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.ranges import parse_content_range, read_length, render_range
from nixcache_oci.clients.http.reply import (
    RESUMED_WINDOWS,
    STREAM_BYTES_PER_SECOND,
    MinimumRate,
    Reply,
    Timeouts,
)
from nixcache_oci.clients.http.retry import find_asked_wait
from nixcache_oci.clients.http.translation import SlowBodyError, translate
from nixcache_oci.clients.upstream.address import Upstream
from nixcache_oci.clients.upstream.rules import ask, upstream_error, upstream_errors
from nixcache_oci.errors import UpstreamBusyError, UpstreamError, UpstreamNotFoundError

_RESUMES_WITHOUT_PROGRESS = 3
ABSENT_STATUSES = frozenset({403, 404, 410})  # to Nix they mean "not there"
_RANGE_NOT_SATISFIABLE = 416
_OK = 200
_PARTIAL = 206


@dataclass(frozen=True, slots=True)
class NarHead:
    """What an upstream says about a NAR before its bytes."""

    status: int  # 200 for the whole NAR, even if a part was asked for; 206 for a part
    size: int | None  # of the whole NAR in bytes; None if not stated
    start: int  # offset of the first byte that follows
    end: int | None  # offset after the last one; None if not stated
    accepts_ranges: bool  # whether parts can be requested
    validator: str  # value for If-Range; empty without a strong one
    coding: str = ""  # Content-Encoding that is undone here, or empty; with one, size and parts are unknown


@dataclass(frozen=True, slots=True)
class NarStream:
    """An open NAR, or a part of it."""

    head: NarHead  # of the answer
    chunks: AsyncIterator[bytes]  # the bytes, unverified; raises UpstreamError if they break off


def range_headers(start: int, end: int | None, validator: str = "") -> dict[str, str]:
    """Make the headers that request ``start`` to before ``end`` (None: all), if the validator still holds."""
    if start == 0 and end is None:
        return {}
    headers = {"Range": render_range(start, end)}
    return {**headers, "If-Range": validator} if validator else headers


def read_head(
    upstream: Upstream, status: int, headers: Mapping[str, str], start: int = 0, end: int | None = None
) -> NarHead:
    """Read the head of an answer to a request for the bytes from ``start`` to before ``end``.

    Raises UpstreamNotFoundError if there is no such NAR or part; UpstreamError if the answer is unusable.
    """
    if status in ABSENT_STATUSES or status == _RANGE_NOT_SATISFIABLE:
        raise UpstreamNotFoundError(f"upstream {upstream}: NAR: status {status}")
    if status not in {_OK, _PARTIAL}:
        raise status_error(f"upstream {upstream}: NAR", status, headers)
    coding = headers.get("Content-Encoding", "")
    if is_coded(coding):
        if status == _PARTIAL:
            raise UpstreamError(f"upstream {upstream}: NAR: a part of something with a Content-Encoding")
        with upstream_errors(upstream):
            Decoder(coding)  # raises for an unknown one
        return NarHead(status, None, 0, None, accepts_ranges=False, validator="", coding=coding)
    size: int | None
    behind: int | None
    if status == _PARTIAL:
        text = headers.get("Content-Range", "")
        with upstream_errors(upstream):
            first, behind, size = parse_content_range(text)
        if not range_headers(start, end) or first != start or (end is not None and behind > end):
            raise UpstreamError(f"upstream {upstream}: NAR: wrong Content-Range {text[:80]!r}")
    else:
        first, size = 0, read_length(headers)
        # For 2^64-1, its own marker for no length, the HTTP library returns an empty, complete body.
        if size is None and "Content-Length" in headers:
            text = headers["Content-Length"]
            raise UpstreamError(f"upstream {upstream}: NAR: wrong Content-Length {text[:80]!r}")
        behind = size
    return NarHead(
        status=status,
        size=size,
        start=first,
        end=behind,
        accepts_ranges=status == _PARTIAL or headers.get("Accept-Ranges", "").strip().lower() == "bytes",
        validator=_read_validator(headers),
    )


def status_error(what: str, status: int, headers: Mapping[str, str]) -> UpstreamError:
    """Make the error for a status that says neither that something is there nor that it is not."""
    text = f"{what}: status {status}"
    if status != HTTPStatus.TOO_MANY_REQUESTS and status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UpstreamError(text)
    failure = Failure(status, {"retry-after": headers.get("Retry-After", "")})
    return UpstreamBusyError(text, find_asked_wait(failure, datetime.now(UTC)))


def _read_validator(headers: Mapping[str, str]) -> str:
    # RFC 9110, 13.1.5: If-Range takes no weak entity tag
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


async def open_part(
    http: HttpClient,
    upstream: Upstream,
    url: URL,
    limits: Timeouts,
    start: int,
    end: int | None,
    headers: Mapping[str, str],
    on_connect: Callable[[], None] = lambda: None,
    most_bytes: int | None = None,
) -> tuple[Reply, NarHead]:
    """Request the bytes from ``start`` to before ``end``, as the headers say; the caller closes the reply.

    ``on_connect`` and ``most_bytes`` are those of ``ask``. Raises UpstreamError for no usable answer.
    """
    reply = await ask(
        http, upstream, "GET", url, limits, headers=headers, on_connect=on_connect, most_bytes=most_bytes
    )
    try:
        return reply, read_head(upstream, reply.status, reply.headers, start, end)
    except UpstreamError:
        reply.close()
        raise


Reopen = Callable[[int, int | None, str], Awaitable[tuple[Reply, NarHead]]]


class NarBody:
    """The bytes of one NAR, over as many connections as needed; closes each reply.

    Args:
        upstream: for errors.
        reply: the first answer.
        head: of that answer.
        reopen: requests the bytes from the first to before the second offset again, if the third argument, a
            validator, still holds.
        pause_seconds: wait before the first resume without progress; doubles with each.
        stall_seconds: most that one wait counts towards the minimum rate over all connections.
    """

    def __init__(
        self,
        upstream: Upstream,
        reply: Reply,
        head: NarHead,
        reopen: Reopen,
        pause_seconds: float,
        stall_seconds: float,
    ) -> None:
        self._upstream = upstream
        self._reply = reply
        self._head = head
        self._reopen = reopen
        self._pause_seconds = pause_seconds
        self._decoder = Decoder(head.coding) if head.coding else None
        self._position = head.start
        self._end = head.end
        self._stall_seconds = stall_seconds
        self._total_rate = MinimumRate(RESUMED_WINDOWS * stall_seconds, STREAM_BYTES_PER_SECOND)
        self._resumes = 0
        self._clock = asyncio.get_running_loop().time

    def close(self) -> None:
        """Release the connection, or end it if bytes are still to come."""
        self._reply.close()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they arrive; UpstreamError if they broke off, and could not be resumed."""
        is_first = True  # its wait has a limit of its own
        while True:
            began = self._clock()
            chunk = await self._read_or_resume()
            if chunk is not None and not chunk:
                if self._decoder is not None:
                    with upstream_errors(self._upstream):
                        self._decoder.end()
                return
            waited = 0 if is_first else min(self._clock() - began, self._stall_seconds)
            is_first = False
            try:
                self._total_rate.add(len(chunk or b""), waited)
            except SlowBodyError as error:
                raise upstream_error(self._upstream, translate(error)) from error
            if chunk is None:
                continue
            self._position += len(chunk)
            self._resumes = 0
            if self._end is not None and self._position > self._end:
                raise UpstreamError(f"upstream {self._upstream}: NAR: more bytes than announced")
            if self._decoder is None:
                yield chunk
                continue
            with upstream_errors(self._upstream):
                pieces = self._decoder.feed(chunk)
                while piece := next(pieces, b""):
                    yield piece

    async def _read_or_resume(self) -> bytes | None:
        """Return the next bytes, none at the end; or None if there is a new connection to read from."""
        try:
            chunk = await self._reply.next()
        except HttpError as error:
            await self._resume(upstream_error(self._upstream, error))
            return None
        if chunk or self._end is None or self._position >= self._end:
            return chunk
        cut = f"upstream {self._upstream}: NAR: cut at byte {self._position} of {self._end}"
        await self._resume(UpstreamError(cut))
        return None

    async def _resume(self, error: UpstreamError) -> None:
        self._reply.close()
        if not (self._head.accepts_ranges and self._head.validator):
            raise error
        while self._resumes < _RESUMES_WITHOUT_PROGRESS:
            await asyncio.sleep(self._pause_seconds * 2**self._resumes)
            self._resumes += 1
            try:
                reply, head = await self._reopen(self._position, self._end, self._head.validator)
            except UpstreamNotFoundError:
                raise
            except UpstreamError as again:
                error = again
                continue
            self._reply = reply
            self._check_same(head)
            return
        raise error

    def _check_same(self, head: NarHead) -> None:
        sizes = {size for size in (self._head.size, head.size) if size is not None}
        if head.start != self._position or len(sizes) > 1:
            raise UpstreamError(f"upstream {self._upstream}: NAR: changed at byte {self._position}")
        if self._end is None:
            self._end = head.end

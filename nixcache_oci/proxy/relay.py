"""Relaying a NAR, or a range of it, to a client, and ending a failed transfer so that Nix recovers.

A single range is served; lists, other units and malformed headers are ignored, as RFC 9110, section 14,
allows, and the whole is sent. Facts about Nix clients, "Reading": at a 404 before the first byte, Nix tries
another cache or builds; a connection that is cut later is resumed if the response had ``Accept-Ranges``; a
NAR never has a Content-Encoding.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Self

from aiohttp import hdrs, web

from nixcache_oci.errors import Error, FormatError
from nixcache_oci.proxy.app_keys import COUNTERS
from nixcache_oci.proxy.front.aiohttp_protocol import connection_of
from nixcache_oci.proxy.front.responses import NAR_TYPE
from nixcache_oci.wording import counted

_ONE_RANGE: Final = re.compile(
    r"bytes[ \t]*=[ \t]*([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})[ \t]*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes from ``start`` to before ``end``, of ``size`` bytes."""

    start: int
    end: int
    size: int

    @classmethod
    def whole(cls, size: int) -> Self:
        """The whole."""
        return cls(0, size, size)

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole."""
        return self.start == 0 and self.end == self.size

    @property
    def content_range(self) -> str:
        """The header of a 206 response."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


class UnsatisfiableRangeError(Exception):
    """The range starts after the end of ``size`` bytes: 416."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a Range header for content of ``size`` bytes; None to send the whole.

    Raises UnsatisfiableRangeError if there is no such byte.
    """
    match = _ONE_RANGE.fullmatch(header) if header is not None else None
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise UnsatisfiableRangeError(size)
        return ByteRange(size - length, size, size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableRangeError(size)
    end = min(int(last) + 1, size) if last else size
    return ByteRange(start, end, size)


_log = logging.getLogger(__name__)


def wanted_range(request: web.Request) -> str | None:
    """Return a Range header that applies: on GET, without If-Range, because no validator is ever sent."""
    if request.method != hdrs.METH_GET or hdrs.IF_RANGE in request.headers:
        return None
    return request.headers.get(hdrs.RANGE)


def nar_headers(extent: ByteRange | None, *, accepts_ranges: bool = True) -> dict[str, str]:
    """Make the headers of a response; ``extent`` is None if the size is unknown."""
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: NAR_TYPE}
    if accepts_ranges:
        headers[hdrs.ACCEPT_RANGES] = "bytes"
    if extent is not None:
        headers[hdrs.CONTENT_LENGTH] = str(extent.end - extent.start)
        if not extent.is_whole:
            headers[hdrs.CONTENT_RANGE] = extent.content_range
    return headers


async def send_head(request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
    """Answer HEAD: the headers of GET without a body."""
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write_eof()
    return response


async def relay(
    request: web.Request, chunks: AsyncIterator[bytes], headers: dict[str, str], count: Callable[[int], None]
) -> web.StreamResponse:
    """Relay a stream, piece by piece, as fast as the client reads; if it is cut, the connection is closed.

    An Error from the first chunk is raised, and becomes a status. With a Content-Range in the headers, the
    status is 206. ``count`` receives the number of bytes sent.
    """
    # Wait for the first bytes before sending the head: until then, a failure is a 404.
    # In a list, to be taken out: a name would hold them for as long as the stream lasts.
    first = [await anext(chunks, b"")]
    status = 206 if hdrs.CONTENT_RANGE in headers else 200
    response = web.StreamResponse(status=status, headers=headers)
    await response.prepare(request)
    counters = request.app[COUNTERS]
    counters.nars += 1
    fields = {"path": request.path}
    try:
        await _write_all(request, response, first, chunks, count)
    except ConnectionError:
        _log.debug("client went away", extra={"fields": fields})
        _cut(request)
    except Error as error:
        counters.nars_cut += 1
        _log.warning("transfer cut", extra={"fields": {**fields, "error": str(error)}})
        _cut(request)
    except Exception:  # noqa: BLE001  # no error page may follow the head
        counters.nars_cut += 1
        _log.exception("transfer cut by an unexpected error", extra={"fields": fields})
        _cut(request)
    return response


async def _write_all(
    request: web.Request,
    response: web.StreamResponse,
    first: list[bytes],
    chunks: AsyncIterator[bytes],
    count: Callable[[int], None],
) -> None:
    connection = connection_of(request)
    left = response.content_length
    chunk: bytes | None = first.pop()
    while chunk is not None:
        if left is not None:
            # The library would send fewer bytes than announced, and the next head would fill the gap.
            if len(chunk) > left:
                raise FormatError(f"{counted(len(chunk) - left, 'byte')} more than were announced")
            left -= len(chunk)
        if chunk:
            await response.write(chunk)
            connection.sent_bytes += len(chunk)
            count(len(chunk))
        chunk = await anext(chunks, None)
    if left:
        raise FormatError(f"{counted(left, 'byte')} fewer than were announced")
    await response.write_eof()


def _cut(request: web.Request) -> None:
    # No error page may follow: it would end up in the NAR. The client notices the missing bytes, and the
    # library writes nothing more to a closing transport.
    if request.transport is not None:
        request.transport.close()

"""An answer, whose body is read as it comes, or whole; and how slowly it may come, at the least.

A time-out that starts anew with each byte ends silence, and no drip. So each window of waiting has to bring a
certain number of bytes. Time in which nobody waits does not count, for our own clients may read slowly; and
there is no limit on the whole, which may be large.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
from multidict import CIMultiDictProxy

from nixcache_oci.clients.http.errors import (
    FOREIGN_ERRORS,
    Failure,
    HttpError,
    SlowBodyError,
    parse_error,
    translate,
)
from nixcache_oci.clients.http.session import limit_stall
from nixcache_oci.clients.http.url import parse_url
from nixcache_oci.wording import counted

# Tables, packs and NARs: eight at once on a line of 64 kbit/s. Nix itself takes as little as a byte a second,
# but what is given up here is resumed where it stopped.
STREAM_BYTES_PER_SECOND: Final = 1024
# What is read whole before it is of use: manifests, lists, answers of a token service. 4 MiB take 17 minutes.
DOCUMENT_BYTES_PER_SECOND: Final = 4 * 1024
# Each connection begins a window of its own. Where a stream breaks off and is resumed, the rate is taken over
# so many windows besides, for which a wait counts as one at most: outages are bounded elsewhere.
RESUMED_WINDOWS: Final = 3

ERROR_LIMIT: Final = 64 * 1024  # bytes of an error document that are read
_REDIRECTS: Final = range(300, 400)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an exchange may take, in seconds.

    Attributes:
        head: all heads together, redirects included, to the end of the last one; None for no limit.
        first: each wait for bytes, up to the first ones of the body; None for no limit.
        stall: each later wait, and the window over which the body's least rate is taken.
        again: how long a new connection may give no head before another one is tried beside it.
    """

    head: float | None
    first: float | None
    stall: float
    again: float


class MinimumRate:
    """Watches one body.

    Args:
        window_seconds: of waiting, over which the rate is taken.
        bytes_per_second: the least.
    """

    __slots__ = ("_count", "_least", "_waited", "_window_seconds")

    def __init__(self, window_seconds: float, bytes_per_second: int) -> None:
        self._window_seconds = window_seconds
        self._least = window_seconds * bytes_per_second
        self._waited = 0.0
        self._count = 0

    def add(self, count: int, waited: float) -> None:
        """Count bytes that were waited for.

        Args:
            count: how many.
            waited: seconds.

        Raises:
            SlowBodyError: a window is over that brought too few.
        """
        self._count += count
        self._waited += waited
        if self._waited < self._window_seconds:
            return
        if self._count < self._least:
            raise SlowBodyError(f"only {counted(self._count, 'byte')} in {self._waited:.0f} s")
        self._waited = 0.0
        self._count = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its body.

    Attributes:
        status: of HTTP.
        headers: names are compared without case.
        body: at least its beginning.
        is_elsewhere: whether another server gave it than the one that was meant.
        is_public: whether it came from a public address, so that what it names has to be at one, too.
    """

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    is_elsewhere: bool = False
    is_public: bool = False

    def error(
        self,
        *,
        is_expected: bool = False,
        is_verified: bool = False,
        is_heavy: bool = False,
        is_about_token: bool = False,
    ) -> HttpError:
        """Take this answer as a failure.

        Args:
            is_expected: whether what was asked for is known to exist.
            is_verified: whether what was sent has the digest that it was sent with.
            is_heavy: whether the request carried much.
            is_about_token: whether the token service gave it.
        """
        failure = Failure(
            self.status,
            {"retry-after": self.headers.get("Retry-After", "")},
            self.body,
            is_elsewhere=self.is_elsewhere,
            is_expected=is_expected,
            is_verified=is_verified,
            is_heavy=is_heavy,
        )
        code, message = parse_error(self.body)
        said = " ".join(filter(None, (str(self.status), code or _phrase(self.status))))
        if message and message.upper() != code:
            said += f" ({message})"
        if self.status in _REDIRECTS and (origin := _origin_of(self.headers.get("Location", ""))):
            said += f", to {origin}"
        if is_about_token:
            said = f"no token: {said}"
        elif self.is_elsewhere:
            said = f"the storage behind the registry answered {said}"
        return HttpError(failure, said, code=code, is_about_token=is_about_token)


class Reply:
    """An answer whose body is still to be read. Close it; what was not read costs its connection.

    Args:
        response: of aiohttp, asked for with ``limits.first`` as the limit for each wait.
        limits: for the body.
        is_elsewhere: as below.
        is_public: as below.
        transports: those that the request's body went to.

    Attributes:
        status: of HTTP.
        headers: of the answer; names are compared without case.
        is_elsewhere: whether another server gave it than the one that was meant.
        is_public: whether it came from a public address, or from one that is not known, behind an HTTP proxy.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        limits: Limits,
        *,
        is_elsewhere: bool,
        is_public: bool,
        transports: Sequence[asyncio.Transport] = (),
    ) -> None:
        self._response = response
        self._content = response.content
        self._limits = limits
        self._rate = MinimumRate(limits.stall, STREAM_BYTES_PER_SECOND)
        self._is_first = True  # its wait is no stall
        self._transports = transports
        self._clock = asyncio.get_running_loop().time
        self.status = response.status
        self.headers = response.headers
        self.is_elsewhere = is_elsewhere
        self.is_public = is_public
        # Framing is no progress: chunk extensions, sizes and trailers may go on for ever, and aiohttp's own
        # limit begins anew with each byte of them.
        self._is_framed = "Content-Length" not in self.headers or "Transfer-Encoding" in self.headers

    async def take(self, limit: int) -> Answer:
        """Read the answer, as ``read`` does, and close it."""
        try:
            body = await self.read(limit)
        finally:
            self.close()
        return Answer(self.status, self.headers, body, self.is_elsewhere, self.is_public)

    async def read(self, limit: int) -> bytes:
        """Read the body, up to ``limit`` bytes; more of it is left out.

        Raises:
            HttpError: the connection broke or stalled, or the body comes too slowly.
        """
        body = bytearray()
        self._rate = MinimumRate(self._limits.stall, DOCUMENT_BYTES_PER_SECOND)
        self._end_first()
        while len(body) < limit and (chunk := await self.next()):
            body += chunk
        return bytes(body[:limit])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes.

        Raises:
            HttpError: the connection broke or stalled, or the body comes too slowly.
        """
        while chunk := await self.next():
            yield chunk

    async def next(self) -> bytes:
        """Give the next bytes of the body, as they come; none at its end.

        Raises:
            HttpError: the connection broke or stalled, or the body comes too slowly.
        """
        began = self._clock()
        try:
            if self._is_framed:
                async with asyncio.timeout(self._limits.first if self._is_first else self._limits.stall):
                    chunk = await self._content.readany()
            else:  # as it was received: to join what came meanwhile would copy all of it, and hold it twice
                chunk, _ = await self._content.readchunk()
            if self._is_first:
                self._end_first()
                began = self._clock()
            if chunk:
                self._rate.add(len(chunk), self._clock() - began)
        except FOREIGN_ERRORS as error:
            if isinstance(error, aiohttp.ClientPayloadError) and (rest := _received(self._content)):
                return rest
            raise translate(error) from None
        return chunk

    def close(self) -> None:
        """Give the connection back, or end it where the body was not read to its end.

        A refusal may come while the request's own body is still on its way; that connection is aborted, since
        closing it would wait for a peer that has stopped reading.
        """
        self._response.close()
        for transport in self._transports:
            if transport.get_write_buffer_size():
                transport.abort()

    def _end_first(self) -> None:
        self._is_first = False
        limit_stall(self._response, self._limits.stall)


def _received(content: aiohttp.StreamReader) -> bytes:
    """Take what came before the connection broke: aiohttp holds it back, and whoever resumes needs it."""
    return content._read_nowait(-1) if content.total_bytes else b""  # noqa: SLF001  there is no public way


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _origin_of(location: str) -> str:
    """Show where an address leads, without path and query, which may be signed; empty where it is none."""
    try:
        return str(parse_url(location, encoded=True).origin())
    except ValueError:
        return ""

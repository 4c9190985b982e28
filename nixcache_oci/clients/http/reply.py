"""An answer, whose body is read as it comes, or whole; and how slowly it may come, at the least.

A time-out that starts anew with each byte ends silence, and no drip. So each window of waiting has to bring a
certain number of bytes. Time in which nobody waits does not count, for our own clients may read slowly; and
there is no limit on the whole, which may be large.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import aiohttp

from nixcache_oci.clients.http.errors import SlowBodyError, translated
from nixcache_oci.clients.http.session import limit_stall

# Tables, packs and NARs: eight at once on a line of 64 kbit/s. Nix itself takes as little as a byte a second,
# but what is given up here is resumed where it stopped.
STREAM_BYTES_PER_SECOND: Final = 1024
# What is read whole before it is of use: manifests, lists, answers of a token service. 4 MiB take 17 minutes.
DOCUMENT_BYTES_PER_SECOND: Final = 4 * 1024
# Each connection begins a window of its own. Where a stream breaks off and is resumed, the rate is taken over
# so many windows besides, for which a wait counts as one at most: outages are bounded elsewhere.
RESUMED_WINDOWS: Final = 3


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
            raise SlowBodyError(f"only {self._count} bytes in {self._waited:.0f} s")
        self._waited = 0.0
        self._count = 0


class Reply:
    """An answer whose body is still to be read. Close it; what was not read costs its connection.

    Args:
        response: of aiohttp.
        is_elsewhere: as below.
        is_public: as below.
        window_seconds: of waiting for the body, over which its least rate is taken, and how long a blob may
            stand still after its first bytes. Of what is read whole, the longest wait for a byte as well, for
            framing is no progress: chunk extensions, sizes and trailers may go on for ever. What comes in
            chunks is no blob: its length has to be told.
        transports: those that the request's body went to.

    Attributes:
        status: of HTTP.
        headers: of the answer; names are compared without case.
        is_elsewhere: whether a server gave it that the registry sent us to.
        is_public: whether it came from a public address, or from one that is not known, behind an HTTP proxy.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        is_elsewhere: bool,
        is_public: bool,
        window_seconds: float,
        transports: Sequence[asyncio.Transport] = (),
    ) -> None:
        self._response = response
        self._window_seconds = window_seconds
        self._transports = transports
        self.status = response.status
        self.headers = response.headers
        self.is_elsewhere = is_elsewhere
        self.is_public = is_public

    async def read(self, limit: int) -> bytes:
        """Read the body, up to ``limit`` bytes; more of it is left out.

        Raises:
            TroubleError: the connection broke or stalled, or the body comes too slowly.
        """
        body = bytearray()
        content = self._response.content
        rate = MinimumRate(self._window_seconds, DOCUMENT_BYTES_PER_SECOND)
        clock = asyncio.get_running_loop().time
        with translated():
            while len(body) < limit:
                began = clock()
                async with asyncio.timeout(self._window_seconds):
                    chunk = await content.readany()
                if not chunk:
                    break
                rate.add(len(chunk), clock() - began)
                body += chunk
        return bytes(body[:limit])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes; for its first bytes the limit is that of the head.

        Raises:
            TroubleError: the connection broke or stalled, or the body comes too slowly.
        """
        content = self._response.content
        rate = MinimumRate(self._window_seconds, STREAM_BYTES_PER_SECOND)
        clock = asyncio.get_running_loop().time
        is_first = True
        while True:
            with translated():
                began = clock()
                try:
                    # As it was received: to join what came meanwhile would copy all of it once more.
                    chunk, is_end_of_part = await content.readchunk()
                except aiohttp.ClientPayloadError:
                    if rest := _received(content):
                        yield rest
                    raise
                if is_first:
                    limit_stall(self._response, self._window_seconds)
                rate.add(len(chunk), 0 if is_first else clock() - began)
                is_first = False
            if chunk:
                yield chunk
            elif not is_end_of_part or content.at_eof():  # the library has one reader for all empty bodies
                return

    def close(self) -> None:
        """Give the connection back, or end it where the body was not read to its end.

        A refusal may come while the request's own body is still on its way; that connection is aborted, since
        closing it would wait for a peer that has stopped reading.
        """
        self._response.close()
        for transport in self._transports:
            if transport.get_write_buffer_size():
                transport.abort()


def _received(content: aiohttp.StreamReader) -> bytes:
    """Take what came before the connection broke: aiohttp holds it back, and whoever resumes needs it."""
    return content._read_nowait(-1) if content.total_bytes else b""  # noqa: SLF001  there is no public way

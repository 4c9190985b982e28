"""Answers as libcurl receives them.

Source: CURLOPT_PREREQFUNCTION(3).
"""

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pycurl
from multidict import CIMultiDict, CIMultiDictProxy

from nixcache_oci.clients.http.fresh import Exchange, Line
from nixcache_oci.clients.http.session import HeadError, HeadMeter
from nixcache_oci.clients.http.translation import CurlCode, LargeBodyError, TransferError

if TYPE_CHECKING:
    from nixcache_oci.clients.http.curl_generation import Generation

_ABORTED: Final = -1  # what a callback returns so that libcurl ends the request


class CurlAnswer:
    """One answer, as far as it has come.

    Attributes:
        status: of HTTP, once the head is here.
        headers: the same.
        is_http2: the same.
        peer: the IP address that it comes from.
        is_over_new: whether a connection was opened for it.
        connect_by: when that has to be ready, in the event loop's time.
        refusal: why no socket was opened.
    """

    def __init__(
        self,
        host: str,
        port: int,
        most_bytes: int,
        seconds: float | None,
        closed: Callable[[], None],
    ) -> None:
        self.status = 0
        self.headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        self.is_http2 = False
        self.peer: str | None = None
        self.is_over_new = False
        self.connect_by = 0.0
        self.refusal: OSError | None = None
        self._host, self._port = host, port
        self._seconds = seconds
        self._closed = closed
        self._left_bytes = most_bytes
        self._most_bytes = most_bytes
        self._meter = HeadMeter()
        self._lines: list[bytes] = []
        self._is_new_head = True
        self._pieces: list[bytes] = []
        self._error: Exception | None = None
        self._has_begun = False
        self._is_over = False
        self._line = Line()
        self._news: asyncio.Future[None] | None = None
        self._scouting: asyncio.Future[bool] | None = None
        self._generation: Generation | None = None
        self._handle: pycurl.Curl | None = None

    def begin(
        self,
        generation: "Generation",
        handle: pycurl.Curl,
        exchange: Exchange,
        limit: asyncio.Timeout,
        on_connect: Callable[[], None],
        scouting: asyncio.Future[bool] | None,
    ) -> None:
        """Send the request once there is a connection for it; ``scouting`` of ``Generation.await_scout``."""
        self._scouting = scouting

        def about_to_send(peer: str, local: str, _peer_port: int, local_port: int) -> int:
            self.peer = peer
            self._line = exchange.line = generation.line(local, local_port, is_new=self.is_over_new)
            exchange.note_sent(is_reused=self._line.is_proven)
            self._tell_scouted(is_sent=True)
            if not limit.expired():
                now = asyncio.get_running_loop().time()
                limit.reschedule(None if self._seconds is None else now + self._seconds)
            on_connect()
            return int(pycurl.PREREQFUNC_OK)

        handle.setopt(pycurl.PREREQFUNCTION, about_to_send)
        handle.setopt(pycurl.HEADERFUNCTION, self._take_line)
        handle.setopt(pycurl.WRITEFUNCTION, self._take)
        self._generation, self._handle = generation, handle
        generation.add(handle, self)

    async def head(self) -> None:
        """Wait for the final head."""
        while not self.status:
            if self._is_over:
                raise self._error or TransferError(CurlCode.GOT_NOTHING, self._host, self._port)
            await self._more()

    async def next(self) -> bytes:
        """Return the next bytes of the body; none at its end."""
        if not self._pieces and not self._is_over:
            async with asyncio.timeout(self._seconds):
                while not self._pieces and not self._is_over:
                    await self._more()
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            return piece
        if self._error is not None:
            raise self._error
        return b""

    def limit_stall(self, seconds: float) -> None:
        """Limit further waits for bytes."""
        self._seconds = seconds

    def close(self) -> None:
        """End what is still to come; over HTTP/1.1, its connection ends as well."""
        self._is_over = True
        self._tell_scouted(is_sent=False)
        if self._generation is not None and self._handle is not None:
            self._generation.remove(self._handle)
        self._closed()

    @property
    def was_dropped(self) -> bool:
        """Whether a connection that others had used ended before any of the answer came."""
        return self.peer is not None and not self.is_over_new and not self._has_begun

    def end(self, handle: pycurl.Curl, code: int, text: str) -> None:
        """Note that libcurl has ended it, with its code and message."""
        if code:
            errno = handle.getinfo(pycurl.OS_ERRNO)
            self._error = self._error or TransferError(
                code,
                self._host,
                self._port,
                text,
                os_error=self.refusal or (OSError(errno, os.strerror(errno)) if errno else None),
                has_begun=self.status > 0,
            )
        self._is_over = True
        self._tell()

    def never_sent(self) -> TransferError:
        """Make the error for a request that was not begun."""
        return TransferError(CurlCode.GOT_NOTHING, self._host, self._port)

    def _take_line(self, line: bytes) -> int:
        """Take a line of a head, or of the trailers, which are bounded alike."""
        self._line.hear()
        self._has_begun = True
        try:
            has_ended = self._meter.feed(line)
        except HeadError as error:
            self._error = error
            return _ABORTED
        if self.status:
            return len(line)
        if self._is_new_head:
            self._lines.clear()
        self._is_new_head = line in {b"\r\n", b"\n"}
        self._lines.append(line)
        if has_ended:
            self.headers = CIMultiDictProxy(CIMultiDict(map(_split, self._lines[1:-1])))
            self.is_http2 = self._lines[0].startswith(b"HTTP/2")
            self.status = int(self._lines[0].split()[1])
            self._meter = HeadMeter()
            self._tell()
        return len(line)

    def _take(self, piece: bytes) -> int:
        self._line.hear()
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            self._error = LargeBodyError(self._most_bytes)
            return _ABORTED
        self._pieces.append(piece)
        self._tell()
        return len(piece)

    def _tell_scouted(self, *, is_sent: bool) -> None:
        if self._scouting is not None and not self._scouting.done():
            self._scouting.set_result(is_sent)

    async def _more(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def _tell(self) -> None:
        """Wake up whoever waits for more."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _split(line: bytes) -> tuple[str, str]:
    name, _, text = line.decode(errors="surrogateescape").partition(":")
    return name.strip(), text.strip()

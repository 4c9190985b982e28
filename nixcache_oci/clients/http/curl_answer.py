"""Answers as libcurl receives them, and the connections that they come over.

Sources: libcurl-multi(3), curl_multi_socket_action(3), CURLOPT_PREREQFUNCTION(3).
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import pycurl
from multidict import CIMultiDict, CIMultiDictProxy

from nixcache_oci.clients.http.fresh import Exchange, Line
from nixcache_oci.clients.http.session import HeadError, HeadMeter
from nixcache_oci.clients.http.translation import CurlCode, LargeBodyError, TransferError

MOST_CONNECTIONS: Final = 48
"""To one host and port; further requests wait for one of them."""

MOST_STREAMS: Final = 100
"""Requests over one connection, if the server allows so many."""

MOST_IDLE: Final = 4 * MOST_CONNECTIONS
"""Connections that stay open without a request."""

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


class Generation:
    """Connections, and what is under way over them, driven by the event loop."""

    def __init__(self) -> None:
        self.begun_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._answers: dict[pycurl.Curl, CurlAnswer] = {}
        self._lines: WeakValueDictionary[tuple[str, int], Line] = WeakValueDictionary()
        self._scouts: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._waiting = 0  # for a scout
        self.is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        self._multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, MOST_CONNECTIONS)
        self._multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, MOST_STREAMS)
        self._multi.setopt(pycurl.M_MAXCONNECTS, MOST_IDLE)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._answers) or self._waiting > 0

    async def await_scout(self, host: str, port: int) -> asyncio.Future[bool] | None:
        """Wait until a request to the same host has a connection: if it is of HTTP/2, all share it.

        CURLOPT_PIPEWAIT would have others wait for the whole first answer of a server that speaks HTTP/1.1.
        Returns None if one was sent. Else this request is the one that others wait for: the result is to say
        whether it was sent.
        """
        while (scout := self._scouts.get((host, port))) is not None:
            self._waiting += 1
            try:
                await asyncio.wait([scout])
            finally:
                self._waiting -= 1
            if scout.result():
                return None
        scout = self._scouts[host, port] = self._loop.create_future()
        scout.add_done_callback(lambda _: self._scouts.pop((host, port)))
        return scout

    def add(self, handle: pycurl.Curl, answer: CurlAnswer) -> None:
        """Begin a request; TransferError if all was closed meanwhile."""
        if self.is_closed:
            raise answer.never_sent()
        self._answers[handle] = answer
        self._multi.add_handle(handle)

    def remove(self, handle: pycurl.Curl) -> None:
        """End a request, if it has not ended."""
        if self._answers.pop(handle, None) is not None:
            self._multi.remove_handle(handle)
            handle.close()

    def line(self, address: str, port: int, *, is_new: bool) -> Line:
        """Return a connection, by its local end; forgotten when no request uses it."""
        line = None if is_new else self._lines.get((address, port))
        if line is None:
            line = self._lines[address, port] = Line(is_proven=not is_new)
        return line

    def close(self) -> None:
        """End all requests, and close all connections."""
        self.is_closed = True
        for handle, answer in list(self._answers.items()):
            answer.end(handle, CurlCode.GOT_NOTHING, "")
            self._multi.remove_handle(handle)
            handle.close()
        self._answers.clear()
        self._multi.close()
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, events: int, descriptor: int, _multi: pycurl.CurlMulti, _data: object) -> None:
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
        if events & pycurl.POLL_IN:
            self._loop.add_reader(descriptor, self._act, descriptor, pycurl.CSELECT_IN)
        if events & pycurl.POLL_OUT:
            self._loop.add_writer(descriptor, self._act, descriptor, pycurl.CSELECT_OUT)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, descriptor: int, events: int) -> None:
        self._multi.socket_action(descriptor, events)
        left = 1
        while left:
            left, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                self._end(handle, 0, "")
            for handle, code, text in failed:
                self._end(handle, code, text)

    def _end(self, handle: pycurl.Curl, code: int, text: str) -> None:
        self._answers[handle].end(handle, code, text)
        self.remove(handle)

"""Connections of libcurl, and what is under way over them.

Sources: libcurl-multi(3), curl_multi_socket_action(3).
"""

import asyncio
import time
from typing import Final
from weakref import WeakValueDictionary

import pycurl

from nixcache_oci.clients.http.curl_answer import CurlAnswer
from nixcache_oci.clients.http.fresh import Line
from nixcache_oci.clients.http.translation import CurlCode

MOST_CONNECTIONS: Final = 48
"""To one host and port; further requests wait for one of them."""

MOST_STREAMS: Final = 100
"""Requests over one connection, if the server allows so many."""

MOST_IDLE: Final = 4 * MOST_CONNECTIONS
"""Connections that stay open without a request."""


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

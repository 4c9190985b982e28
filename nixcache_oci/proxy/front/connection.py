"""The front of a connection: answers frequent requests from memory, and forwards all others.

Nix asks for thousands of narinfos one after another, and then for as many NARs, most of them small and in
packs. The HTTP library takes several times as long to parse such a request and write its response as a
look-up takes. So each head is parsed here first. A plain request for a narinfo or a small NAR in memory is
answered at once, with the same bytes as by the library. All other bytes are forwarded unchanged, one
request at a time, so that responses keep their order. The end of a request is only decided for unambiguous
heads: from the first ambiguous one, the connection is the library's for good.

Requests of a client that does not read are left unread: at most a full transport buffer (64 KiB) and the
responses of one more turn (64 KiB and a NAR of up to 256 KiB) wait for it. Pipelined requests are held up
to 64 KiB, and the piece that exceeds it.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Final, cast

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.proxy.front.aiohttp_protocol import AiohttpProtocol, log_answer
from nixcache_oci.proxy.front.connections import IDLE_SECONDS, Connections
from nixcache_oci.proxy.front.fast_path import FastPath
from nixcache_oci.proxy.front.request_head import END_OF_HEAD, HeadReader, Shape
from nixcache_oci.proxy.front.responses import render_nar, render_narinfo

_log = logging.getLogger(__name__)

TURN_BYTES: Final = 64 * 1024
"""After so many bytes of responses, other connections have their turn."""

AHEAD_BYTES: Final = 64 * 1024
"""What a client may pipeline before reading is paused."""

_GET: Final = ord("G")  # no other method that is answered here starts with it
_END_LENGTH: Final = len(END_OF_HEAD)
_CHECK_SECONDS: Final = IDLE_SECONDS / 6
_MOST_HEAD_BYTES: Final = 16 * 1024


class _Phase(Enum):
    """Where a connection is between the front and the library."""

    IDLE = "idle"  # no request is in progress
    PARTIAL = "partial"  # the library has the beginning of a head
    FORWARDED = "forwarded"  # the library has one whole request, and answers it
    DETACHED = "detached"  # the connection is closing, or is the library's for good


class FrontServer:
    """A protocol factory; ``library`` makes the library's protocol of a connection."""

    def __init__(
        self,
        library: Callable[[], AiohttpProtocol],
        reader: HeadReader,
        fast_path: FastPath,
        connections: Connections,
    ) -> None:
        self._library = library
        self._fast_path = fast_path
        self._is_logging = _log.isEnabledFor(logging.DEBUG)
        self.connections = connections
        self.reader = reader

    def __call__(self) -> "Front":
        """Make the front of one connection."""
        return Front(self, self._library())

    def answer(self, data: bytes, start: int, end: int) -> bytes | None:
        """Answer the request with this head; None if the library has to."""
        is_get = data[start] == _GET
        try:
            answer = (
                self._narinfo(data, start, end, is_get=is_get)
                or self._nar(data, start, end, is_get=is_get)
                or self._below_prefix(data, start, end, is_get=is_get)
            )
        except Exception:  # noqa: BLE001  # the library meets it again, logs it, and answers
            return None
        if answer is not None and self._is_logging:
            method, path, _rest = data[start:end].decode().split(" ", 2)
            log_answer(method, path, 200)
        return answer

    def _narinfo(self, data: bytes, start: int, end: int, *, is_get: bool) -> bytes | None:
        hash_part = self.reader.wanted_narinfo(data, start, end)
        narinfo = self._fast_path.get_narinfo(hash_part, is_get=is_get) if hash_part is not None else None
        return render_narinfo(narinfo, is_get=is_get) if narinfo is not None else None

    def _nar(self, data: bytes, start: int, end: int, *, is_get: bool) -> bytes | None:
        url = self.reader.wanted_nar(data, start, end)
        nar = self._fast_path.get_nar(url, is_get=is_get) if url is not None else None
        return render_nar(nar, is_get=is_get) if nar is not None else None

    def _below_prefix(self, data: bytes, start: int, end: int, *, is_get: bool) -> bytes | None:
        found = self.reader.wanted_below_prefix(data, start, end)
        if found is None:
            return None
        prefix, wanted = found
        if isinstance(wanted, NarUrl):
            nar = self._fast_path.get_nar(wanted, prefix, is_get=is_get)
            return render_nar(nar, is_get=is_get) if nar is not None else None
        narinfo = self._fast_path.get_narinfo_below(prefix, wanted, is_get=is_get)
        return render_narinfo(narinfo, is_get=is_get) if narinfo is not None else None


class Front(asyncio.Protocol):
    """One connection; the library's protocol sees everything but the requests that are answered here."""

    _transport: asyncio.Transport

    def __init__(self, server: FrontServer, library: AiohttpProtocol) -> None:
        self._server = server
        self._library = library
        self._loop = asyncio.get_running_loop()
        self._phase = _Phase.IDLE
        self._begun = b""  # what the library has of a head
        self._ahead = b""  # received, not parsed yet
        self._is_full = False  # the client does not read
        self._is_held = False  # reading is paused
        self._connection = library.connection
        self._connection.when_answered = self._go_on_after
        self._check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        # Not isinstance: other event loops have transports of their own.
        self._transport = cast("asyncio.Transport", transport)
        self._library.connection_made(transport)
        # Not before: a connection whose TLS handshake fails is never made, and nobody would stop the timer.
        self._check = self._loop.call_later(_CHECK_SECONDS, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop, and let a running handler know."""
        self._stop()
        self._library.connection_lost(exc)

    def eof_received(self) -> None:
        """Let the library handle a half-closed connection."""
        self._library.eof_received()

    def pause_writing(self) -> None:
        """Pause answering: the client is not reading."""
        self._is_full = True
        self._library.pause_writing()

    def resume_writing(self) -> None:
        """Resume answering."""
        self._is_full = False
        self._library.resume_writing()
        self._loop.call_soon(self._go_on)

    def data_received(self, data: bytes) -> None:
        """Answer, forward, or hold what was received."""
        self._connection.active_at = self._loop.time()
        if self._phase is _Phase.PARTIAL:
            self._complete(data)
        elif self._phase is _Phase.FORWARDED or self._ahead or self._is_full:
            self._keep(self._ahead + data)
        elif self._phase is _Phase.IDLE:
            self._answer(data)

    def _go_on_after(self, stays: bool) -> None:
        """Note that the library has written a whole response, and whether the connection stays open."""
        if not stays:
            self._stop()
        elif self._phase is _Phase.FORWARDED:
            self._phase = _Phase.IDLE
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._phase is not _Phase.IDLE or self._is_full or not self._ahead:
            return
        if self._transport.is_closing():
            return  # a NAR was cut: nothing may follow
        data, self._ahead = self._ahead, b""
        self._server.connections.hold(self._connection, 0)
        self._answer(data)
        self._hold_or_let_go()

    def _answer(self, data: bytes) -> None:
        """Answer requests until one is for the library, or other connections have their turn."""
        answer = self._server.answer
        answers: list[bytes] = []
        size, start, length = 0, 0, len(data)
        while start < length and size < TURN_BYTES:
            end = data.find(END_OF_HEAD, start) + _END_LENGTH
            answered = answer(data, start, end) if end >= _END_LENGTH else None
            if answered is None:
                break
            answers.append(answered)
            size += len(answered)
            start = end
        if answers:
            self._transport.write(answers[0] if len(answers) == 1 else b"".join(answers))
        if start == length:
            return
        rest = data[start:]
        if size < TURN_BYTES and not self._is_full:
            self._phase, self._begun = _Phase.PARTIAL, b""
            self._complete(rest)
        else:
            self._keep(rest)
            self._loop.call_soon(self._go_on)

    def _complete(self, data: bytes) -> None:
        """Forward a head, or more of a partial one."""
        known, whole = len(self._begun), self._begun + data
        end = whole.find(END_OF_HEAD, max(0, known - _END_LENGTH + 1)) + _END_LENGTH
        is_complete = end >= _END_LENGTH
        if is_complete and self._server.reader.shape(whole, 0, end) is not Shape.OTHER:
            self._give_request(data[: end - known], whole[end:])
        elif is_complete or len(whole) > _MOST_HEAD_BYTES:
            self._leave(data)
        else:
            if not known:
                self._connection.head_since = self._connection.active_at
            self._begun = whole
            # Held twice: here, and by the library.
            self._server.connections.hold(self._connection, 2 * len(whole))
            self._library.data_received(data)

    def _give_request(self, data: bytes, rest: bytes) -> None:
        self._phase, self._begun = _Phase.FORWARDED, b""
        self._connection.head_since = None
        self._keep(rest)
        self._library.data_received(data)

    def _leave(self, data: bytes) -> None:
        """Hand the connection to the library for good."""
        rest = data + self._ahead
        self._stop()
        self._hold_or_let_go()
        self._connection.is_detached = True
        self._transport.set_protocol(self._library)
        self._library.data_received(rest)

    def _keep(self, data: bytes) -> None:
        self._ahead = data
        if self._connection.held_bytes != len(data):
            self._server.connections.hold(self._connection, len(data))
        self._hold_or_let_go()

    def _hold_or_let_go(self) -> None:
        is_too_much = len(self._ahead) > AHEAD_BYTES
        if is_too_much == self._is_held or self._transport.is_closing():
            return
        self._is_held = is_too_much
        if is_too_much:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _close_if_idle(self) -> None:
        now = self._loop.time()
        if self._phase in {_Phase.IDLE, _Phase.PARTIAL}:
            # The library's timer does not see what was answered here.
            self._library.keep_alive(True)
            if now - self._connection.active_at >= IDLE_SECONDS:
                self._transport.close()
                return
        self._check = self._loop.call_later(_CHECK_SECONDS, self._close_if_idle)

    def _stop(self) -> None:
        self._phase = _Phase.DETACHED
        self._begun = self._ahead = b""
        self._connection.when_answered = None
        if self._check is not None:
            self._check.cancel()

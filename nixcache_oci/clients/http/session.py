"""aiohttp sessions for every client here: bounded heads, trusted certificates, and the address that answered.

aiohttp limits single fields of a head, but skips any number of interim answers (1xx). A server that sends
them without end would keep the event loop busy, so bytes are counted before aiohttp's parser sees them.

Certificates are trusted alike for the registry, GitHub, upstreams, and imported caches: ``NIX_SSL_CERT_FILE``
wins over ``SSL_CERT_FILE``, as in Nix, because a company proxy's certificate that Nix was given is meant here
as well. Without either, OpenSSL's default location.

Sources: RFC 9112 section 4 (status line), RFC 9110 section 15.2 (interim answers); Nix manual, "Environment
variables", NIX_SSL_CERT_FILE.
"""

import asyncio
import functools
import logging
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Final, cast

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from nixcache_oci.clients.http.fresh import StaleConnectionError, exchange_now

MOST_INTERIM_ANSWERS: Final = 8
MOST_HEAD_BYTES: Final = 64 * 1024  # of all interim answers and the final head together

# As aiohttp's parser reads them: a line may end without its CR.
_END: Final = re.compile(rb"\n\r?\n")
_LONGEST_END: Final = 3
# Anything else may be an interim answer in disguise, and is counted.
_FINAL: Final = re.compile(rb"[\r\n]*HTTP/[0-9](?:\.[0-9])? (?:101|[2-9][0-9][0-9])(?![0-9])")


class HeadError(aiohttp.ClientError):
    """An answer's head did not end within what is allowed."""


class HeadMeter:
    """Counts what arrives before the end of one final head. No I/O."""

    def __init__(self) -> None:
        self._unread = bytearray()  # of the head that has not ended yet
        self._searched = 0
        self._former_bytes = 0  # of heads that have ended
        self._interim = 0

    def feed(self, data: bytes) -> bool:
        """Take the next bytes, and tell whether the final head has ended; HeadError if it is too long."""
        room = MOST_HEAD_BYTES + 1 - self._former_bytes - len(self._unread)
        self._unread += data[:room]
        while match := _END.search(self._unread, max(0, self._searched - _LONGEST_END + 1)):
            if _FINAL.match(self._unread):
                return True
            self._interim += 1
            if self._interim > MOST_INTERIM_ANSWERS:
                raise HeadError(f"more than {MOST_INTERIM_ANSWERS} interim answers (1xx)")
            self._former_bytes += match.end()
            del self._unread[: match.end()]
            self._searched = 0
        self._searched = len(self._unread)
        if self._former_bytes + len(self._unread) > MOST_HEAD_BYTES:
            raise HeadError(f"the answer's head has over {MOST_HEAD_BYTES} bytes")
        return False


class HeadGuard:
    """Sits between a connection and aiohttp's protocol until the final head has arrived."""

    def __init__(self, transport: asyncio.Transport, protocol: aiohttp.client_proto.ResponseHandler) -> None:
        self._transport = transport
        self._protocol = protocol
        self._meter = HeadMeter()
        # All but the bytes goes straight to aiohttp.
        self.eof_received, self.connection_lost = protocol.eof_received, protocol.connection_lost
        self.pause_writing, self.resume_writing = protocol.pause_writing, protocol.resume_writing
        transport.set_protocol(cast("asyncio.Protocol", self))

    def remove(self) -> None:
        """Pass bytes straight to aiohttp again."""
        if cast("object", self._transport.get_protocol()) is self and not self._transport.is_closing():
            self._transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        """Count bytes before they are parsed."""
        try:
            has_ended = self._meter.feed(data)
        except HeadError as error:
            self._protocol.set_exception(error)
            self._transport.abort()
            return
        if has_ended:
            self.remove()
        self._protocol.data_received(data)


CERT_FILE_VARIABLE: Final = "NIX_SSL_CERT_FILE"

_log = logging.getLogger(__name__)


def tls_context(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext | bool:
    """Return aiohttp's argument ``ssl``: a context, or True for its own, which obeys ``SSL_CERT_FILE``.

    A file that cannot be used costs one warning, and the usual certificates are used: in a pure nix-shell
    the variable names a missing file.
    """
    path = environment.get(CERT_FILE_VARIABLE, "").strip()
    return (_read(path) if path else None) or True


def trusted_certificates(environment: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """Return the file and the folder of the same certificates, where each is there."""
    if isinstance(tls_context(environment), ssl.SSLContext):
        return environment[CERT_FILE_VARIABLE].strip(), None
    usual = ssl.get_default_verify_paths()
    return usual.cafile, usual.capath


@functools.cache
def _read(path: str) -> ssl.SSLContext | None:
    try:
        context = ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one: the file holds no certificate
        reason = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        _log.warning("%s: %s: %s; using the usual certificates", CERT_FILE_VARIABLE, path, reason)
        return None
    context.set_alpn_protocols(("http/1.1",))
    return context


_READ_BUFFER_BYTES: Final = 256 * 1024
HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "nixcache-oci"}


on_connection: ContextVar[Callable[[asyncio.Transport], None] | None] = ContextVar("connection", default=None)
"""Called with the connection that a request is sent over."""


class GuardedResponse(aiohttp.ClientResponse):
    """An answer.

    Attributes:
        peer: the connection's remote IP address; None for an HTTP proxy, which says nothing of the server.
        guard: limits its head.
    """

    peer: str | None = None
    guard: HeadGuard | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Wait for the final head."""
        try:
            started = await super().start(connection)
        finally:
            if self.guard is not None:
                self.guard.remove()
        log_request(self.method, self.url, self.status)
        return started


def log_request(method: str, url: URL, status: int) -> None:
    """Log an answer, without what may be secret."""
    if _log.isEnabledFor(logging.DEBUG):
        # A URL with a query may be signed, and whoever has it needs no password.
        shown = url.origin() if url.raw_query_string else url.with_user(None)
        _log.debug("request", extra={"fields": {"method": method, "url": shown, "status": status}})


class GuardedRequest(aiohttp.ClientRequest):
    """A request whose answer has a bounded head, and knows the address that it came from."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write the request; StaleConnectionError if its connection is no longer trusted."""
        transport, protocol = conn.transport, conn.protocol
        if transport is None or protocol is None:  # closed meanwhile, which aiohttp reports itself
            return await super().send(conn)
        exchange = exchange_now.get()
        if exchange is not None and not exchange.freshness.take(protocol, exchange):
            raise StaleConnectionError("an idle connection that may be dead")  # which closes it
        if (tell := on_connection.get()) is not None:
            tell(transport)
        guard = HeadGuard(transport, protocol)
        response = await super().send(conn)
        if isinstance(response, GuardedResponse):
            response.guard = guard
            peer = transport.get_extra_info("peername")
            response.peer = str(peer[0]) if peer and self.proxy is None else None
        return response


def open_session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """Open a session that keeps no cookies, reads no netrc, and leaves bodies as they were sent."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        headers=HEADERS,
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        request_class=GuardedRequest,
        response_class=GuardedResponse,
        trust_env=False,  # forward_proxy chooses proxies; a netrc would send credentials along redirects
    )


class StreamedAnswer:
    """aiohttp's answer as a ``Reply`` takes it.

    Args:
        response: requested with this limit for each read.
        seconds: the limit.
        transports: that the request's body was sent over.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        seconds: float | None,
        transports: Sequence[asyncio.Transport] = (),
    ) -> None:
        self._response = response
        self._content = response.content
        self._seconds = seconds
        self._transports = transports
        self.status = response.status
        self.headers = response.headers
        self.peer = response.peer if isinstance(response, GuardedResponse) else None
        # Framing is no progress: chunk extensions, sizes and trailers may go on forever, and each of their
        # bytes restarts aiohttp's own timeout.
        self._is_framed = "Content-Length" not in self.headers or "Transfer-Encoding" in self.headers

    async def next(self) -> bytes:
        """Return the next bytes of the body; none at its end."""
        try:
            if self._is_framed:
                async with asyncio.timeout(self._seconds):
                    return await self._content.readany()
            # As received: joining what arrived meanwhile would copy it, and hold it twice.
            return (await self._content.readchunk())[0]
        except aiohttp.ClientPayloadError:
            # aiohttp holds back what arrived before the connection broke, but resuming needs it.
            if self._content.total_bytes and (rest := self._content._read_nowait(-1)):  # noqa: SLF001  there is no public way
                return rest
            raise

    def limit_stall(self, seconds: float) -> None:
        """Set the timeout for further reads, which may be shorter than that of the first."""
        self._seconds = seconds
        connection = self._response.connection  # None once all of it has arrived
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = seconds
            # While reading is paused, the reader takes its time; aiohttp starts the timeout again after that.
            if connection.transport is None or connection.transport.is_reading():
                connection.protocol.start_timeout()

    def close(self) -> None:
        """Release the connection, or end it if the body was not read to its end.

        If the answer came while the request's body was still being sent, the connection is aborted: closing
        it would wait for a peer that has stopped reading.
        """
        self._response.close()
        for transport in self._transports:
            if transport.get_write_buffer_size():
                transport.abort()

"""Sessions of aiohttp with what every client of ours wants: bounded heads, and the address that answered."""

import logging
from collections.abc import Sequence
from typing import Final

import aiohttp
from aiohttp.connector import Connection

from nixcache_oci.clients.http.fresh import StaleConnectionError, exchange_now
from nixcache_oci.clients.http.head import HeadGuard

_READ_BUFFER_BYTES: Final = 256 * 1024
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "nixcache-oci"}

_log = logging.getLogger(__name__)


class GuardedResponse(aiohttp.ClientResponse):
    """An answer.

    Attributes:
        peer: IP address at the other end of the connection that it came over; None where that is an HTTP
            proxy's, which says nothing about the server.
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
        if _log.isEnabledFor(logging.DEBUG):
            # A URL with a query may be signed, and whoever has it needs no password.
            url = self.url.origin() if self.url.raw_query_string else self.url.with_user(None)
            _log.debug(
                "request", extra={"fields": {"method": self.method, "url": url, "status": self.status}}
            )
        return started


class GuardedRequest(aiohttp.ClientRequest):
    """A request whose answer has a bounded head, and knows who gave it."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write the request."""
        transport, protocol = conn.transport, conn.protocol
        if transport is None or protocol is None:  # closed meanwhile, which aiohttp says itself
            return await super().send(conn)
        exchange = exchange_now.get()
        if exchange is not None and not exchange.freshness.take(protocol, exchange):
            raise StaleConnectionError("an idle connection that may be dead")  # it is closed for that
        guard = HeadGuard(transport, protocol)
        response = await super().send(conn)
        if isinstance(response, GuardedResponse):
            response.guard = guard
            peer = transport.get_extra_info("peername")
            response.peer = str(peer[0]) if peer and self.proxy is None else None
        return response


def open_session(
    connector: aiohttp.BaseConnector,
    *,
    timeout: aiohttp.ClientTimeout | None = None,
    request_class: type[GuardedRequest] = GuardedRequest,
    traces: Sequence[aiohttp.TraceConfig] = (),
) -> aiohttp.ClientSession:
    """Open a session that keeps no cookies, reads no netrc, and leaves bodies as they were sent.

    Args:
        connector: opens its connections; closed with it.
        timeout: where a request names none.
        request_class: may do more.
        traces: of aiohttp.
    """
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout if timeout is not None else aiohttp.ClientTimeout(total=None),
        headers=_HEADERS,
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        request_class=request_class,
        response_class=GuardedResponse,
        trace_configs=list(traces),
        trust_env=False,  # proxies are chosen here, and a netrc would send credentials along redirects
    )


def peer_of(response: aiohttp.ClientResponse) -> str | None:
    """Tell the IP address that gave an answer; None where it is not known, as behind an HTTP proxy."""
    return response.peer if isinstance(response, GuardedResponse) else None


def limit_stall(response: aiohttp.ClientResponse, seconds: float) -> None:
    """Let further waits for an answer's bytes take less time than the one for its first, which is over."""
    connection = response.connection  # None once all of it is here
    if connection is not None and connection.protocol is not None:
        connection.protocol.read_timeout = seconds
        connection.protocol.start_timeout()

"""aiohttp's protocol, with counted connections and bare errors for malformed requests.

aiohttp would send its name and version, and echo the bytes; and if its parser fails, the event loop logs a
traceback for each such request.
"""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

from aiohttp import web

from nixcache_oci.proxy.front.connections import IDLE_SECONDS, Connection, Connections
from nixcache_oci.proxy.front.responses import COMMON_HEADERS

_log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024  # of a body, before reading is paused


class AiohttpProtocol(web.RequestHandler):
    """One connection, which may be idle for ``idle_seconds``."""

    __slots__ = ("_connections", "connection")

    def __init__(self, server: web.Server, connections: Connections, *, idle_seconds: float) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # replaced by log_access below
            keepalive_timeout=idle_seconds,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        )
        self._connections = connections
        self.connection = Connection()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        # Not isinstance: other event loops have transports of their own.
        self.connection.transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)
        self._connections.opened(self.connection, self._loop.time())

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._connections.closed(self.connection)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client reads too slowly."""
        self._connections.filled(self.connection, self._loop.time())
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        self._connections.drained(self.connection)
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse; if the parser fails, close the connection."""
        if self.connection.is_detached:
            self._connections.hold(self.connection, self.connection.held_bytes + len(data))
        if self.transport is None or self.transport.is_closing():
            return  # the library would answer a lost connection
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001  # the parser fails on hostile bytes
            _log.debug("request not read", extra={"fields": {"error": repr(error)}})
            self.force_close()

    def begin(self) -> bool:
        """Note that a request is being answered; False if too many are."""
        return self._connections.begin(self.connection)

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """Note that a response was written, and whether the connection stays open."""
        del time
        log_answer(request.method, request.path, response.status)
        self._connections.end(self.connection, self._loop.time(), stays=bool(response.keep_alive))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer with the bare status, and close the connection.

        Raises ConnectionError if a response has begun: none may follow.
        """
        del message
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("unexpected error", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: no other can follow")
        text = f"{HTTPStatus(status).phrase}\n"
        response = web.Response(status=status, text=text, headers=COMMON_HEADERS)
        response.force_close()
        return response


def log_answer(method: str, path: str, status: int) -> None:
    """Log one response, at debug level."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("answered", extra={"fields": {"method": method, "path": path, "status": status}})


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection of a request."""
    protocol = request.protocol
    return protocol.connection if isinstance(protocol, AiohttpProtocol) else Connection()


def client_of(request: web.BaseRequest) -> str:
    """Return the address that a request came from; empty for a Unix socket."""
    return request.remote or ""


def protocol_factory(
    server: web.Server, connections: Connections, *, idle_seconds: float = IDLE_SECONDS
) -> Callable[[], AiohttpProtocol]:
    """Return a factory of the protocol of each connection."""
    return lambda: AiohttpProtocol(server, connections, idle_seconds=idle_seconds)

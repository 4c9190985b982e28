"""aiohttp's protocol, but for what it does with bytes that it cannot read; and its connections are counted.

It would tell its name and version, and repeat the bytes; and where its parser fails on them, the event loop
would write a traceback for each such request.
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

_READ_BYTES: Final = 4 * 1024  # no request has a body that anybody reads


class AiohttpProtocol(web.RequestHandler):
    """One connection.

    Args:
        server: of the library.
        connections: where it is counted.
        idle_seconds: how long it may be idle.
    """

    __slots__ = ("_connections", "connection")

    def __init__(self, server: web.Server, connections: Connections, *, idle_seconds: float) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # what it means by "none": see log_access below
            keepalive_timeout=idle_seconds,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        )
        self._connections = connections
        self.connection = Connection()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # Not isinstance: transports of other event loops have all its methods, and are none.
        self.connection.transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)
        self._connections.opened(self.connection, self._loop.time())

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._connections.closed(self.connection)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Hear that the client does not read, or not as fast as bytes come."""
        self._connections.filled(self.connection, self._loop.time())
        super().pause_writing()

    def resume_writing(self) -> None:
        """Hear that the client has read what was there."""
        self._connections.drained(self.connection)
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Read on; what the parser fails on ends the connection."""
        if self.connection.is_detached:
            self._connections.hold(self.connection, self.connection.held_bytes + len(data))
        if self.transport is None or self.transport.is_closing():
            return  # the library would begin to answer a connection that it has lost
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001  # a stranger's bytes, and the library's trouble with them
            _log.debug("request not read", extra={"fields": {"error": repr(error)}})
            self.force_close()

    def begin(self) -> bool:
        """Note that a request is being answered; False where too many are."""
        return self._connections.begin(self.connection)

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """Note that an answer was written, and whether the connection stays."""
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
        """Refuse with the status alone, and end the connection."""
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
    """Log one answer, where somebody wants each of them."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("answered", extra={"fields": {"method": method, "path": path, "status": status}})


def connection_of(request: web.BaseRequest) -> Connection:
    """Give the connection that a request came on."""
    protocol = request.protocol
    return protocol.connection if isinstance(protocol, AiohttpProtocol) else Connection()


def protocol_factory(
    server: web.Server, connections: Connections, *, idle_seconds: float = IDLE_SECONDS
) -> Callable[[], AiohttpProtocol]:
    """Make what makes the protocol of each connection.

    Args:
        server: of the library.
        connections: where they are counted.
        idle_seconds: how long a connection may be idle.
    """
    return lambda: AiohttpProtocol(server, connections, idle_seconds=idle_seconds)

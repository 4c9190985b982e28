"""The HTTP library's protocol, but for what it does with bytes that it cannot read.

It would tell its name and version, and repeat the bytes; and where its parser fails on them, the event loop
would write a traceback for each such request.
"""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import hdrs, web

from nixcache_oci.proxy.front import IDLE_SECONDS, AccessLog
from nixcache_oci.proxy.prepared import SERVER_NAME

_log = logging.getLogger(__name__)


class LibraryProtocol(web.RequestHandler):
    """One connection."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Read on; what the parser fails on ends the connection."""
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001  # a stranger's bytes, and the library's trouble with them
            _log.debug("request not read", extra={"fields": {"error": repr(error)}})
            self.force_close()

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
        response = web.Response(status=status, text=text, headers={hdrs.SERVER: SERVER_NAME})
        response.force_close()
        return response


def library_of(server: web.Server, *, idle_seconds: float = IDLE_SECONDS) -> Callable[[], web.RequestHandler]:
    """Make what makes the protocol of each connection; ``AccessLog`` hears of its answers.

    Args:
        server: of the library.
        idle_seconds: how long a connection may be idle.
    """
    loop = asyncio.get_running_loop()
    return lambda: LibraryProtocol(
        server, loop=loop, access_log=_log, access_log_class=AccessLog, keepalive_timeout=idle_seconds
    )

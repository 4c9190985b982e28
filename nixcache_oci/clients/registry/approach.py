"""A connection to the storage, opened while the registry is still asked where in it a blob lies.

A registry that keeps its blobs elsewhere answers a request for one with a redirect. Where to is known from
the last one; a new connection there takes two round trips (TCP, TLS), which pass while the registry is asked
for a token and for the redirect.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from aiohttp.connector import Connection
from yarl import URL

from nixcache_oci.clients.registry.breakage import translated

Connect: TypeAlias = Callable[[URL], Coroutine[Any, Any, Connection | None]]


class Approach:
    """At most one connection that is being opened, for one request.

    Args:
        origin: where it leads; None where that is not known.
        connect: opens it, or gives None where there is nothing to be opened ahead.

    Attributes:
        led_to: where the request was redirected to, as an origin.
    """

    def __init__(self, origin: URL | None, connect: Connect) -> None:
        self.led_to: URL | None = None
        self._origin: Final = origin
        self._connecting = asyncio.create_task(connect(origin)) if origin is not None else None

    async def arrive(self, origin: URL) -> None:
        """Hear of a redirect; the connection is there for the request that is sent next.

        Raises:
            TroubleError: it could not be opened.
        """
        self.led_to = origin
        if self._connecting is not None and origin == self._origin:
            with translated():
                _give_back(await self._connecting)

    def end(self) -> None:
        """End a connection that is still being opened."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting.add_done_callback(_give_back_from)


class Storage:
    """Where a registry keeps its blobs, as far as its last answers told.

    Args:
        connect: opens a connection to an origin, or gives None where there is nothing to be opened ahead.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._origin: URL | None = None

    @contextmanager
    def approach(self) -> Iterator[Approach]:
        """Open a connection there, while a request is made that is probably redirected to it."""
        approach = Approach(self._origin, self._connect)
        try:
            yield approach
        finally:
            approach.end()
        self._origin = approach.led_to


def _give_back(connection: Connection | None) -> None:
    if connection is not None:
        connection.release()


def _give_back_from(connecting: asyncio.Task[Connection | None]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        _give_back(connecting.result())

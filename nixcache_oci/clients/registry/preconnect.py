"""Connections that are opened before they are needed: one to the storage, and sometimes one to the registry.

A registry that keeps its blobs elsewhere answers a request for one with a redirect. Where to is known from
the last one; a new connection there takes two round trips (TCP, TLS), which pass while the registry is asked
for a token and for the redirect. Who waits for a token that somebody else asked for will need a connection to
the registry besides: the other one takes that over which the token comes.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from aiohttp.connector import Connection
from yarl import URL

from nixcache_oci.clients.http.errors import translated

# Of an origin, and whether it has to be at a public address.
Target: TypeAlias = tuple[URL, bool]
Connect: TypeAlias = Callable[[URL, bool], Coroutine[Any, Any, Connection | None]]


class Preconnect:
    """At most one connection to each origin that is on the way of one request.

    Args:
        targets: where it will probably go.
        connect: opens a connection, or gives None where there is nothing to be opened ahead.

    Attributes:
        last: where it went at last.
    """

    def __init__(self, targets: Iterable[Target], connect: Connect) -> None:
        self.last: Target | None = None
        self._connecting = {target: asyncio.create_task(connect(*target)) for target in targets}

    async def arrive(self, origin: URL, is_guarded: bool) -> None:
        """Have the connection at hand for the request that is sent there next.

        Raises:
            HttpError: it could not be opened.
        """
        self.last = origin, is_guarded
        connecting = self._connecting.get(self.last)
        if connecting is not None:
            with translated():
                _give_back(await connecting)

    def end(self) -> None:
        """End connections that are still being opened."""
        for connecting in self._connecting.values():
            connecting.cancel()
            connecting.add_done_callback(_give_back_from)


class Storage:
    """Where a registry keeps its blobs, as far as its last answers told.

    Args:
        connect: opens a connection to an origin, or gives None where there is nothing to be opened ahead.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._target: Target | None = None

    @contextmanager
    def preconnect(self, registry: URL, *, is_waiting: bool) -> Iterator[Preconnect]:
        """Open connections while a request for a blob is made.

        Args:
            registry: its origin.
            is_waiting: whether the request has to wait for a token that was asked for already.
        """
        targets = {(registry, False)} if is_waiting else set()
        if self._target is not None:
            targets.add(self._target)
        preconnect = Preconnect(targets, self._connect)
        try:
            yield preconnect
        finally:
            preconnect.end()
        self._target = preconnect.last if preconnect.last and preconnect.last[0] != registry else None


def _give_back(connection: Connection | None) -> None:
    if connection is not None:
        connection.release()


def _give_back_from(connecting: asyncio.Task[Connection | None]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        _give_back(connecting.result())

"""Opens connections before they are needed: to the storage, and sometimes to the registry.

A registry that keeps its blobs elsewhere redirects requests for them. The last redirect tells where to; the
two round trips of a new connection there (TCP, TLS) overlap with asking the registry for a token and for the
redirect. A request that waits for a token which another one asked for also needs a second connection to the
registry: the open one is busy with the token.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from aiohttp.connector import Connection
from yarl import URL

from nixcache_oci.clients.http.errors import translated

# An origin, and whether it must be at a public address.
Target: TypeAlias = tuple[URL, bool]
Connect: TypeAlias = Callable[[URL, bool], Coroutine[Any, Any, Connection | None]]


class Preconnect:
    """At most one connection to each origin on the way of one request.

    Args:
        targets: that the request will probably go to.
        connect: opens a connection; returns None if there is nothing to open ahead.

    Attributes:
        last: the target that it went to last.
    """

    def __init__(self, targets: Iterable[Target], connect: Connect) -> None:
        self.last: Target | None = None
        self._connecting = {target: asyncio.create_task(connect(*target)) for target in targets}

    async def arrive(self, origin: URL, is_guarded: bool) -> None:
        """Wait until the connection to an origin, if any, is ready for the next request.

        Raises:
            HttpError: it could not be opened.
        """
        self.last = origin, is_guarded
        connecting = self._connecting.get(self.last)
        if connecting is not None:
            with translated():
                _give_back(await connecting)

    def end(self) -> None:
        """Cancel connections that are still being opened."""
        for connecting in self._connecting.values():
            connecting.cancel()
            connecting.add_done_callback(_give_back_from)


class Storage:
    """Remembers where a registry keeps its blobs, from its last redirect."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._target: Target | None = None

    @contextmanager
    def preconnect(self, registry: URL, *, is_waiting: bool) -> Iterator[Preconnect]:
        """Open connections while a request for a blob is made.

        Args:
            registry: its origin.
            is_waiting: whether the request has to wait for a token that another one asked for.
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

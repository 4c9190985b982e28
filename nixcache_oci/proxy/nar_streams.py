"""The limit of concurrent NAR streams: each takes a connection to the registry, and up to about 1.5 MiB.

A NAR beyond the limit waits: at a 404, Nix would build it. While one waits, streams of clients that hardly
read are cut, and Nix resumes them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from nixcache_oci.errors import Error
from nixcache_oci.proxy.front.connections import Connection, Connections

_log = logging.getLogger(__name__)

MOST_STREAMS: Final = 128
"""If there are enough file descriptors; see ``open_files``."""

MOST_WAITING: Final = 2048
"""NARs waiting; beyond, a request is answered 404."""

WAIT_SECONDS: Final = 240.0
"""Limit of waiting: Nix gives up after 300 s without a byte."""

_SLOW_SECONDS: Final = 10.0
_SLOW_BYTES: Final = 10 * 1024  # in that time


class BusyError(Error):
    """Too much is in progress; the same request may succeed later."""


class NarStreams:
    """Admits at most ``most`` streams at once."""

    def __init__(self, most: int, connections: Connections) -> None:
        self._most = most
        self._connections = connections
        self._free = most
        # When each was last checked, and how much its client had read by then.
        self._streams: dict[Connection, tuple[float, int]] = {}
        self._waiting: dict[asyncio.Future[None], None] = {}

    @asynccontextmanager
    async def turn(self, connection: Connection) -> AsyncIterator[None]:
        """Stream one NAR while the block runs.

        Raises BusyError if its turn did not come; ConnectionError if the client went away meanwhile.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait(connection)
        now = asyncio.get_running_loop().time()
        self._connections.set_stream(connection, is_stream=True)
        connection.taken_at = now
        self._streams[connection] = (now, connection.progress()[0])
        try:
            yield
        finally:
            self._connections.set_stream(connection, is_stream=False)
            del self._streams[connection]
            self._give_back()

    def sweep(self, now: float) -> None:
        """Cut the slowest streams, as many as others wait; to be called every few seconds."""
        slow: list[tuple[int, Connection]] = []
        for connection, (since, before) in list(self._streams.items()):
            if now - since >= _SLOW_SECONDS:
                taken, is_waiting = connection.progress()
                self._streams[connection] = (now, taken)
                if is_waiting and taken - before < _SLOW_BYTES:
                    slow.append((taken - before, connection))
        slow.sort(key=lambda each: each[0])
        count = min(len(slow), len(self._waiting))
        for _taken, connection in slow[:count]:
            connection.cut()
        if count:
            _log.warning("slow transfers cut: others wait", extra={"fields": {"transfers": count}})

    async def _wait(self, connection: Connection) -> None:
        if len(self._waiting) >= MOST_WAITING:
            raise BusyError(f"{MOST_WAITING} NARs wait for their turn already")
        if not self._waiting:
            _log.warning("as many NARs stream as may: others wait", extra={"fields": {"limit": self._most}})
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        connection.when_lost = turn.cancel
        try:
            await asyncio.wait([turn], timeout=WAIT_SECONDS)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise
        finally:
            connection.when_lost = None
            self._waiting.pop(turn, None)
        if turn.cancelled():
            raise ConnectionResetError("the client went away while it waited")
        if not turn.done():
            raise BusyError(f"the turn of a NAR did not come within {WAIT_SECONDS:.0f} s")

    def _give_back(self) -> None:
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

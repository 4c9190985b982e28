"""Handles connections that died silently: after suspend, or behind a NAT or VPN that dropped them.

A request over such a connection gets no answer and no error. So a request without a body that gets nothing
back over a reused connection for a moment is sent again over a new one, in parallel; the first answer counts.
If the new one wins, all connections opened before it are no longer used. A silent new connection gets a rival
too, later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import aiohttp

SILENT_SECONDS: Final = 2.0
"""How long a reused connection may give no head before a new one is tried in parallel."""

MOST_TRIES: Final = 3
"""Requests sent for one answer, the first included."""

AGAIN_SECONDS: Final = 30.0
"""The same for a new connection where slow is likelier than dead: NARs, packs, upstreams."""

_JUMP_SECONDS: Final = 5.0


class StaleConnectionError(aiohttp.ClientError):
    """An idle connection was taken that is no longer trusted; it is closed now."""


class Freshness:
    """Tracks the age of one client's connections."""

    def __init__(self) -> None:
        self._opened: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        self._trusted_since = 0.0
        self._drift = time.time() - time.monotonic()

    def distrust(self, before: float) -> None:
        """Stop using connections that were opened before a time of ``time.monotonic``."""
        self._trusted_since = max(self._trusted_since, before)

    def notice_sleep(self) -> None:
        """Distrust all idle connections after the machine slept, when the monotonic clock stood still.

        Setting the clock looks the same, and costs a few new connections.
        """
        drift = time.time() - time.monotonic()
        if abs(drift - self._drift) > _JUMP_SECONDS:
            self.distrust(time.monotonic())
        self._drift = drift

    def take(self, connection: object, exchange: "Exchange") -> bool:
        """Note that a request is about to use a connection, and tell whether it may."""
        now = time.monotonic()
        opened = self._opened.setdefault(connection, now)
        exchange.is_reused = opened != now
        if opened < max(self._trusted_since, exchange.opened_after):
            return False
        exchange.sent_at = now
        if not exchange.sent.done():
            exchange.sent.set_result(None)
        return True


@dataclass(slots=True, eq=False)
class Exchange:
    """One try of a request."""

    freshness: Freshness  # of the client's connections
    opened_after: float  # its connection must be newer than this time of ``time.monotonic``
    is_reused: bool = False  # whether that connection was used before
    sent_at: float = 0.0  # when it was sent, or its last redirect was
    # Done once it was sent.
    sent: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


exchange_now: ContextVar[Exchange | None] = ContextVar("exchange", default=None)

Send = Callable[[], Awaitable[aiohttp.ClientResponse]]
_Try = asyncio.Task[aiohttp.ClientResponse]


async def send_fresh(freshness: Freshness, send: Send, *, again_seconds: float) -> aiohttp.ClientResponse:
    """Send a request that may be sent more than once, and wait for the head of its answer.

    A new connection may give no head for ``again_seconds``; then another is tried in parallel.
    """
    freshness.notice_sleep()
    race = _Race(freshness, send, again_seconds)
    try:
        return await race.run()
    finally:
        await race.end()


class _Race:
    """The tries of one request that are under way, the newest last."""

    def __init__(self, freshness: Freshness, send: Send, again_seconds: float) -> None:
        self._freshness = freshness
        self._send = send
        self._again_seconds = again_seconds
        self._tries: dict[_Try, Exchange] = {}
        self._left = MOST_TRIES

    async def run(self) -> aiohttp.ClientResponse:
        self._begin(opened_after=0.0)
        while True:
            newest = next(reversed(self._tries.values()))
            await self._wait(newest)
            for one in [one for one in self._tries if one.done()]:
                exchange = self._tries.pop(one)
                if one.exception() is None:
                    self._freshness.distrust(exchange.opened_after)
                    return one.result()
                if not self._tries:
                    return one.result()  # raises
                self._left = 0  # those under way may still answer, but no more are started
            if self._left > 0 and newest.sent.done() and time.monotonic() >= self._due_at(newest):
                self._begin(opened_after=time.monotonic())

    async def end(self) -> None:
        """Cancel the losers, with their connections."""
        for one in self._tries:
            if one.done() and not one.cancelled() and one.exception() is None:
                one.result().close()
            one.cancel()
        await asyncio.gather(*self._tries, return_exceptions=True)

    def _begin(self, opened_after: float) -> None:
        self._left -= 1
        exchange = Exchange(self._freshness, opened_after)
        self._tries[asyncio.create_task(_send_over_trusted(self._send, exchange))] = exchange

    async def _wait(self, newest: Exchange) -> None:
        """Wait until a try has ended, the newest one was sent, or another is due."""
        waited: set[asyncio.Future[Any]] = set(self._tries)
        limit = None
        if not newest.sent.done():
            waited.add(newest.sent)
        elif self._left > 0:
            limit = max(0.0, self._due_at(newest) - time.monotonic())
        await asyncio.wait(waited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)

    def _due_at(self, newest: Exchange) -> float:
        return newest.sent_at + (SILENT_SECONDS if newest.is_reused else self._again_seconds)


async def _send_over_trusted(send: Send, exchange: Exchange) -> aiohttp.ClientResponse:
    exchange_now.set(exchange)
    while True:  # each round closes one idle connection
        try:
            return await send()
        except StaleConnectionError:
            continue

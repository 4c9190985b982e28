"""Handles connections that died silently: after suspend, or behind a NAT or VPN that dropped them.

A request over such a connection gets no answer and no error. So a request without a body that gets nothing
back over a reused connection for a moment is sent again over a newer one, in parallel; the first answer
counts. If the newer one wins, all connections that are older than the silent request are no longer used. A
silent new connection gets a rival too, later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar
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
        self.trusted_since = 0.0  # in ``time.monotonic``
        self._drift = time.time() - time.monotonic()

    def distrust(self, before: float) -> None:
        """Stop using connections that were opened before a time of ``time.monotonic``."""
        self.trusted_since = max(self.trusted_since, before)

    def notice_sleep(self) -> None:
        """Distrust all idle connections after the machine slept, when the monotonic clock stood still.

        Setting the clock looks the same, and costs a few new connections.
        """
        drift = time.time() - time.monotonic()
        if abs(drift - self._drift) > _JUMP_SECONDS:
            self.distrust(time.monotonic())
        self._drift = drift

    def oldest_for(self, exchange: "Exchange") -> float:
        """Return when the oldest connection that a request may use was opened, in ``time.monotonic``."""
        return max(self.trusted_since, exchange.opened_after)

    def take(self, connection: object, exchange: "Exchange") -> bool:
        """Note that a request is about to use a connection, and tell whether it may."""
        now = time.monotonic()
        opened = self._opened.setdefault(connection, now)
        if opened < self.oldest_for(exchange):
            return False
        exchange.note_sent(is_reused=opened != now)
        return True


@dataclass(slots=True, weakref_slot=True)
class Line:
    """A connection that several requests may share."""

    heard_at: float = 0.0  # when bytes of any answer came
    is_proven: bool = False  # whether any answer ever came over it

    def hear(self) -> None:
        """Note that bytes came."""
        self.heard_at, self.is_proven = time.monotonic(), True


@dataclass(slots=True, eq=False)
class Exchange:
    """One try of a request."""

    freshness: Freshness  # of the client's connections
    opened_after: float  # its connection must be newer than this time of ``time.monotonic``
    is_reused: bool = False  # whether that connection was used before
    sent_at: float = 0.0  # when it was sent, or its last redirect was
    # Done once it was sent.
    sent: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    line: Line = field(default_factory=Line)  # that it was sent over

    def note_sent(self, *, is_reused: bool) -> None:
        """Note that it is being sent."""
        self.is_reused = is_reused
        self.sent_at = time.monotonic()
        if not self.sent.done():
            self.sent.set_result(None)

    @property
    def silent_since(self) -> float:
        """When its connection last gave a sign of life, in ``time.monotonic``."""
        return max(self.sent_at, self.line.heard_at)


exchange_now: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


class _Closable(Protocol):
    def close(self) -> object: ...


_Answer = TypeVar("_Answer", bound=_Closable)


async def send_fresh(
    freshness: Freshness, send: Callable[[], Awaitable[_Answer]], *, again_seconds: float
) -> _Answer:
    """Send a request that may be sent more than once, and wait for the head of its answer.

    A new connection may give no head for ``again_seconds``; then another is tried in parallel.
    """
    freshness.notice_sleep()
    race = _Race(freshness, send, again_seconds)
    try:
        answer = await race.run()
    except BaseException:
        await race.end()
        raise
    try:
        await race.end()
    except BaseException:
        answer.close()
        raise
    return answer


class _Race(Generic[_Answer]):
    """The tries of one request that are under way, the newest last."""

    def __init__(
        self, freshness: Freshness, send: Callable[[], Awaitable[_Answer]], again_seconds: float
    ) -> None:
        self._freshness = freshness
        self._send = send
        self._again_seconds = again_seconds
        self._tries: dict[asyncio.Task[_Answer], Exchange] = {}
        self._left = MOST_TRIES

    async def run(self) -> _Answer:
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
                self._begin(opened_after=newest.sent_at)

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
        return newest.silent_since + (SILENT_SECONDS if newest.is_reused else self._again_seconds)


async def _send_over_trusted(send: Callable[[], Awaitable[_Answer]], exchange: Exchange) -> _Answer:
    exchange_now.set(exchange)
    while True:  # each round closes one idle connection
        try:
            return await send()
        except StaleConnectionError:
            continue

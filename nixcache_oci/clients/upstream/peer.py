"""The state of one upstream: its circuit breaker, its requests under way, and counters.

The breaker says when not to ask an unreachable upstream. Only connections count: one that cannot be made, or
that stays silent. An answer for one path, however odd, says nothing about others.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from nixcache_oci.clients.upstream.address import Upstream
from nixcache_oci.clients.upstream.rules import upstream_errors
from nixcache_oci.errors import (
    UpstreamBusyError,
    UpstreamConnectionError,
    UpstreamError,
    UpstreamNotFoundError,
)

FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 300.0


MOST_LOOK_UPS = 48
"""Narinfos that one upstream is asked for at once; further ones wait, in order."""

AHEAD_PAUSE_SECONDS = 60.0
MOST_AHEAD_PAUSE_SECONDS = 3600.0
"""How long nothing is fetched ahead after a 429 or 5xx, unless it names a time; and at most then."""


class BreakerState(StrEnum):
    """Whether requests go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """A circuit breaker: a state machine without I/O.

    Closed: requests go through. Open: none does, until a pause is over. Half-open: one probe is under way;
    its success closes the breaker, its failure opens it again for twice as long.

    Each request is admitted with a ticket and reports its outcome with it. A ticket of an earlier state is
    void, so fifty requests that fail together open the breaker once, not fifty times. Every ``now`` is in
    seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS
        self._open_until: float | None = None
        self._is_probing = False
        self._ticket = 0

    @property
    def state(self) -> BreakerState:
        """Whether requests go through; open lasts until the first request after the pause."""
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_probing else BreakerState.OPEN

    def retry_seconds(self, now: float) -> float | None:
        """Return in how many seconds a probe is allowed; None if it is closed or being probed."""
        if self._open_until is None or self._is_probing:
            return None
        return max(0.0, self._open_until - now)

    def admit(self, now: float) -> int | None:
        """Let one request through, and return the ticket to report its outcome with; None: do not ask."""
        if self._open_until is not None:
            if self._is_probing or now < self._open_until:
                return None
            self._is_probing = True
            self._ticket += 1
        return self._ticket

    def succeed(self, ticket: int) -> None:
        """Note that the upstream answered, whatever it said."""
        if ticket != self._ticket:
            return
        self._pause = FIRST_PAUSE_SECONDS
        self._open_until = None
        self._is_probing = False

    def fail(self, ticket: int, now: float) -> bool:
        """Note that the upstream could not be reached; returns whether this opened the breaker."""
        if ticket != self._ticket:
            return False
        if self._is_probing:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._open_until = now + self._pause
        self._is_probing = False
        self._ticket += 1
        return True

    def abandon(self, ticket: int) -> None:
        """Note that the request was cancelled without an outcome: another one may probe."""
        if ticket == self._ticket:
            self._is_probing = False


_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UpstreamHealth:
    """How one upstream is doing."""

    url: str  # its base URL, without credentials
    state: BreakerState  # whether it is asked at the moment
    hits: int  # narinfos that it had
    misses: int  # narinfos that it said it lacks
    kept: int  # narinfos that it had given before, and was not asked for again
    failures: int  # requests without a usable answer
    last_error: str  # the latest failure's text, or empty
    retry_seconds: float | None  # until it is asked again; None if it is not waited for


@dataclass(frozen=True, slots=True)
class UpstreamLoad:
    """What clients have one upstream do at the moment."""

    look_ups: int  # narinfos that it is asked for
    streams: int  # NARs that it is asked for, or sends


@dataclass(slots=True, eq=False)
class Attempt:
    """One request under way."""

    limit: asyncio.Timeout  # its timeout
    # Limit for the answer, from when the upstream was reached; None for none. Before that, the
    # connection's limits apply.
    answer_seconds: float | None = None
    is_connected: bool = False  # whether the upstream was reached
    is_released: bool = False  # whether it was ended because another request found the upstream unreachable

    def connected(self) -> None:
        """Note that the upstream was reached."""
        if not self.is_connected and self.answer_seconds is not None and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time() + self.answer_seconds)
        self.is_connected = True


class Peer:
    """One upstream and its state; ``clock`` is monotonic.

    ``probe`` makes a new connection and returns once anything was answered; UpstreamError if nothing was.
    """

    def __init__(
        self, upstream: Upstream, clock: Callable[[], float], probe: Callable[[Upstream], Awaitable[None]]
    ) -> None:
        self.upstream = upstream
        self.hits = 0
        self.misses = 0
        self.kept = 0
        self.slow_until = 0.0  # time of the event loop
        self._clock = clock
        self._breaker = Breaker()
        self._attempts: set[Attempt] = set()
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None
        self._failures = 0
        self._last_error = ""
        self._look_up_turns = asyncio.Semaphore(MOST_LOOK_UPS)
        self._look_ups = 0
        self._streams = 0
        self._nothing_ahead_until = -math.inf

    @asynccontextmanager
    async def look_up_turn(self) -> AsyncIterator[None]:
        """Wait until another narinfo may be asked for; count it while the block runs."""
        async with self._look_up_turns:
            self._look_ups += 1
            try:
                yield
            finally:
                self._look_ups -= 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a client's NAR while the block runs."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def load(self) -> UpstreamLoad | None:
        """Tell how busy it is; None if nothing may be fetched ahead now."""
        if self._breaker.state is not BreakerState.CLOSED or self._clock() < self._nothing_ahead_until:
            return None
        return UpstreamLoad(self._look_ups, self._streams)

    def health(self) -> UpstreamHealth:
        """Report how it is doing."""
        return UpstreamHealth(
            url=str(self.upstream),
            state=self._breaker.state,
            hits=self.hits,
            misses=self.misses,
            kept=self.kept,
            failures=self._failures,
            last_error=self._last_error,
            retry_seconds=self._breaker.retry_seconds(self._clock()),
        )

    async def close(self) -> None:
        """Cancel a probe that is under way."""
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing

    async def attempt(self, seconds: float | None, operation: Callable[[Attempt], Awaitable[_T]]) -> _T:
        """Run one operation if the breaker admits it, and report its outcome to the breaker.

        A connection that cannot be made opens the breaker at once. One that was made, and broke or fell
        silent, may be this path's fault, so a probe decides. The operation calls ``connected`` once the
        upstream was reached; then its answer may take these seconds. UpstreamError is its own, or the breaker
        is open.
        """
        ticket = self._breaker.admit(self._clock())
        if ticket is None:
            raise UpstreamError(f"not asked again so soon: {self._last_error}")
        limit = asyncio.timeout(None)
        attempt = Attempt(limit, seconds)
        try:
            with upstream_errors(self.upstream):
                async with limit:
                    result = await self._accounted(attempt, operation)
        except UpstreamNotFoundError:
            self._breaker.succeed(ticket)
            raise
        except UpstreamConnectionError as error:
            self._failures += 1
            if attempt.is_released:
                raise UpstreamError(self._last_error) from error
            self._last_error = str(error)
            if attempt.is_connected and self._breaker.state is BreakerState.CLOSED:
                self._start_probe(ticket)
            else:
                self._fail(ticket, is_connected=attempt.is_connected)
            raise
        except UpstreamError as error:  # it answered, so only this path is affected
            if isinstance(error, UpstreamBusyError):
                asked = AHEAD_PAUSE_SECONDS if error.retry_after is None else error.retry_after
                self._nothing_ahead_until = self._clock() + min(asked, MOST_AHEAD_PAUSE_SECONDS)
            self._failures += 1
            self._last_error = str(error)
            self._breaker.succeed(ticket)
            raise
        except BaseException:
            self._breaker.abandon(ticket)
            raise
        self._breaker.succeed(ticket)
        return result

    async def _accounted(self, attempt: Attempt, operation: Callable[[Attempt], Awaitable[_T]]) -> _T:
        self._attempts.add(attempt)
        try:
            return await operation(attempt)
        finally:
            self._attempts.discard(attempt)

    def _start_probe(self, ticket: int) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._validate(ticket), name=f"probe {self.upstream}")

    async def _validate(self, ticket: int) -> None:
        try:
            await self._probe(self.upstream)
        except UpstreamConnectionError as error:
            self._last_error = str(error)
            self._fail(ticket, is_connected=True)
        except UpstreamError:
            pass  # it answered

    def _fail(self, ticket: int, *, is_connected: bool) -> None:
        now = self._clock()
        if not self._breaker.fail(ticket, now):
            return
        _log.warning("%s; not asked for %.0f s", self._last_error, self._breaker.retry_seconds(now) or 0.0)
        if is_connected:
            return
        # requests that wait for a connection wait in vain; those that have one may still be answered
        for attempt in self._attempts:
            if not attempt.is_connected and not attempt.limit.expired():
                attempt.is_released = True
                attempt.limit.reschedule(asyncio.get_running_loop().time())

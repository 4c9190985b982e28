"""One upstream as it is doing: its breaker, the requests on their way to it, and what became of them.

The breaker says when to leave an unreachable upstream alone. Only connections count: one that cannot be
made, or that answers nothing at all. What an upstream answers for one path, however odd, says nothing about
the others.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from nixcache_oci.clients.upstream.address import Upstream
from nixcache_oci.clients.upstream.rules import upstream_errors
from nixcache_oci.errors import UpstreamConnectionError, UpstreamError, UpstreamNotFoundError

FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 300.0


class BreakerState(StrEnum):
    """Whether requests go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Knows whether one upstream can be reached: a state machine without I/O.

    Closed: requests go through. Open: none does, until a pause is over. Half-open: one probing request is on
    its way; its success closes the breaker, its failure opens it again for twice as long.

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
        """Tell whether requests go through; open lasts until somebody asks after the pause."""
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_probing else BreakerState.OPEN

    def retry_seconds(self, now: float) -> float | None:
        """Tell in how many seconds a probe may go, or None where nothing is waited for."""
        if self._open_until is None or self._is_probing:
            return None
        return max(0.0, self._open_until - now)

    def admit(self, now: float) -> int | None:
        """Let one request through, or not.

        Returns:
            the ticket to report its outcome with, or None: do not ask.
        """
        if self._open_until is not None:
            if self._is_probing or now < self._open_until:
                return None
            self._is_probing = True
            self._ticket += 1
        return self._ticket

    def succeed(self, ticket: int) -> None:
        """The upstream answered, whatever it said."""
        if ticket != self._ticket:
            return
        self._pause = FIRST_PAUSE_SECONDS
        self._open_until = None
        self._is_probing = False

    def fail(self, ticket: int, now: float) -> bool:
        """The upstream could not be reached.

        Returns:
            whether this failure opened the breaker.
        """
        if ticket != self._ticket:
            return False
        if self._is_probing:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._open_until = now + self._pause
        self._is_probing = False
        self._ticket += 1
        return True

    def abandon(self, ticket: int) -> None:
        """The request was given up before it had an outcome: another one may probe."""
        if ticket == self._ticket:
            self._is_probing = False


_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UpstreamHealth:
    """How one upstream is doing.

    Attributes:
        url: its base URL, without credentials.
        state: whether it is asked at the moment.
        hits: narinfos that it had.
        misses: narinfos that it said it has not.
        failures: requests without a usable answer.
        last_error: the newest failure's text, or empty.
        retry_seconds: when it is asked again, or None where nothing is waited for.
    """

    url: str
    state: BreakerState
    hits: int
    misses: int
    failures: int
    last_error: str
    retry_seconds: float | None


@dataclass(slots=True, eq=False)
class Attempt:
    """One request on its way.

    Attributes:
        limit: what ends it.
        answer_seconds: limit for the answer, from when the upstream was reached; None for none. Until then
            the limits of a connection hold.
        is_connected: whether the upstream was reached.
        is_released: whether it was ended because another request found the upstream unreachable.
    """

    limit: asyncio.Timeout
    answer_seconds: float | None = None
    is_connected: bool = False
    is_released: bool = False

    def connected(self) -> None:
        """Note that the upstream was reached."""
        if not self.is_connected and self.answer_seconds is not None and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time() + self.answer_seconds)
        self.is_connected = True


class Peer:
    """One upstream and what is known of it.

    Args:
        upstream: its address.
        clock: monotonic seconds, for the breaker.
        probe: makes a new connection and returns once anything at all was answered; raises UpstreamError.
    """

    def __init__(
        self, upstream: Upstream, clock: Callable[[], float], probe: Callable[[Upstream], Awaitable[None]]
    ) -> None:
        self.upstream = upstream
        self.hits = 0
        self.misses = 0
        self.slow_until = 0.0  # time of the event loop
        self._clock = clock
        self._breaker = Breaker()
        self._attempts: set[Attempt] = set()
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None
        self._failures = 0
        self._last_error = ""

    def health(self) -> UpstreamHealth:
        """Tell how it is doing."""
        return UpstreamHealth(
            url=str(self.upstream),
            state=self._breaker.state,
            hits=self.hits,
            misses=self.misses,
            failures=self._failures,
            last_error=self._last_error,
            retry_seconds=self._breaker.retry_seconds(self._clock()),
        )

    async def close(self) -> None:
        """Cancel a probe that is under way."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing

    async def attempt(self, seconds: float | None, operation: Callable[[Attempt], Awaitable[_T]]) -> _T:
        """Do one thing with the upstream if the breaker lets it, and tell the breaker how it went.

        A connection that cannot be made opens the breaker at once. One that was made, and broke or fell
        silent, may be this path's fault, so a probe decides.

        Args:
            seconds: limit for the answer once the upstream was reached, or None.
            operation: calls ``connected`` once the upstream was reached.

        Raises:
            UpstreamNotFoundError: the operation's; the upstream is well.
            UpstreamError: the operation's, or it was not tried.
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
        except UpstreamError as error:  # it answered, and what is wrong is wrong with this path
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
        # whoever waits for a connection waits in vain; those that have one may still be answered
        for attempt in self._attempts:
            if not attempt.is_connected and not attempt.limit.expired():
                attempt.is_released = True
                attempt.limit.reschedule(asyncio.get_running_loop().time())

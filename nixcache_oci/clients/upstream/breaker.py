"""When to leave an unreachable upstream alone: a state machine without I/O.

Only connections count: one that cannot be made, or that answers nothing at all. What an upstream answers for
one path, however odd, says nothing about the others.

Closed: requests go through. Open: none does, until a pause is over. Half-open: one probing request is on its
way; its success closes the breaker, its failure opens it again for twice as long.

Each request is admitted with a ticket and reports its outcome with it. A ticket of an earlier state is void,
so fifty requests that fail together open the breaker once, not fifty times.
"""

from enum import StrEnum

FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 300.0


class BreakerState(StrEnum):
    """Whether requests go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Knows whether one upstream can be reached; every ``now`` is in seconds of one monotonic clock."""

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

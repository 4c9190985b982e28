"""Decides whether a failed request is retried, and after how long.

Waits double with each try, with full jitter, so that clients that failed together do not come back together.
A wait that the registry asks for is obeyed, unless it exceeds the caller's patience: then the request is
given up at once.

Sources: RFC 9110 section 10.2.3 (Retry-After); GitHub's documentation, "Rate limits for the REST API" (403 as
a secondary rate limit); answers of GHCR, which state the wait as a Go duration in the body.
"""

import asyncio
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from random import SystemRandom
from time import monotonic

from nixcache_oci.clients.http.errors import Failure, HttpError

_log = logging.getLogger(__name__)

_jitter = SystemRandom().random

# nginx' 499, and 520 to 524 and 530 of Cloudflare, tell that the server behind them did not answer well.
_TEMPORARY = frozenset({408, 429, 499, 500, 502, 503, 504, *range(520, 525), 530})
_GOOD = range(200, 300)  # 2xx with an unusable body; retried
_EXPIRED = frozenset({400, 401, 403, 404, 410})  # storage's answers to an expired signature
_SECONDARY_LIMIT = b"secondary rate limit"
_SECONDARY_LIMIT_SECONDS = 60.0
_LEAST_ASKED_SECONDS = 1.0
_SPREAD = 0.25  # jitter on top of a wait that was asked for
_MOST_BACKOFF_SECONDS = 20.0
_MOST_DOUBLINGS = 30
_MOST_ASKED_SECONDS = 86_400.0
_DIGEST_INVALID = b"DIGEST_INVALID"
# Of Go durations; the micro sign is U+00B5 or U+03BC.
_UNITS = {
    "h": 3600.0,
    "ms": 1e-3,
    "m": 60.0,
    "s": 1.0,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "ns": 1e-9,
}
_DURATION_PART = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(_UNITS)})")
_ASKED_IN_BODY = re.compile(rf"retry-after:\s*((?:{_DURATION_PART.pattern})+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When one operation is given up."""

    attempts: int = 5  # most tries; only patience bounds them during a rate limit
    patience_seconds: float = 30.0  # from the start of the operation to its last try, without transmission
    first_backoff_seconds: float = 0.5  # the longest wait after the first failure


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after this many seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again."""

    is_temporary: bool  # whether it may work later
    retry_after: float | None = None  # seconds that the registry asked to wait, or None


def decide(
    policy: RetryPolicy, attempt: int, failure: Failure, *, elapsed: float, jitter: float, now: datetime
) -> Retry | GiveUp:
    """Decide what follows a failure.

    Args:
        policy: the limits.
        attempt: number of the try that failed, from 1.
        failure: of that try.
        elapsed: seconds since the operation began, less transmission.
        jitter: random, from 0 to below 1.
        now: with a time zone, for a Retry-After that is a date.
    """
    asked = find_asked_wait(failure, now)
    if not is_temporary(failure):
        return GiveUp(is_temporary=False)
    longest = min(
        policy.first_backoff_seconds * 2 ** min(attempt - 1, _MOST_DOUBLINGS), _MOST_BACKOFF_SECONDS
    )
    delay = longest * jitter
    if asked is not None:
        delay = max(delay, asked * (1 + _SPREAD * jitter))
    # GHCR asks for milliseconds while its limit is one a minute: five tries would be over too soon.
    is_last = attempt >= policy.attempts and (failure.is_heavy or not is_rate_limit(failure))
    if is_last or elapsed + delay > policy.patience_seconds:
        return GiveUp(is_temporary=True, retry_after=asked)
    return Retry(delay)


def is_temporary(failure: Failure) -> bool:
    """Tell whether the same request may succeed later."""
    status = failure.status
    if status is None or status in _TEMPORARY or _is_secondary_limit(failure):
        return True
    if status in _GOOD:
        # The body was damaged on the way, or something in between answered for the registry.
        return True
    if failure.is_elsewhere:
        return status in _EXPIRED
    if status == HTTPStatus.BAD_REQUEST:
        # Distribution does not replace its files atomically: it read one while another publisher wrote it.
        return failure.is_verified and _DIGEST_INVALID in failure.body
    return status == HTTPStatus.NOT_FOUND and failure.is_expected


def is_rate_limit(failure: Failure) -> bool:
    """Tell whether this is a limit on the rate of requests."""
    return failure.status == HTTPStatus.TOO_MANY_REQUESTS or _is_secondary_limit(failure)


def find_asked_wait(failure: Failure, now: datetime) -> float | None:
    """Find how many seconds the registry asked to wait, at least one; None if it named no time."""
    if failure.status is None:
        return None
    asked = _parse_retry_after(failure.headers.get("retry-after", ""), now)
    if asked is None and failure.status == HTTPStatus.TOO_MANY_REQUESTS:
        asked = _parse_body(failure.body)
    if asked is None:
        return _SECONDARY_LIMIT_SECONDS if _is_secondary_limit(failure) else None
    return min(max(asked, _LEAST_ASKED_SECONDS), _MOST_ASKED_SECONDS)


def _is_secondary_limit(failure: Failure) -> bool:
    return failure.status == HTTPStatus.FORBIDDEN and _SECONDARY_LIMIT in failure.body.lower()


def _parse_retry_after(text: str, now: datetime) -> float | None:
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,15}", text):
        return float(text)
    date = parse_http_date(text)
    return None if date is None else (date - now).total_seconds()


def parse_http_date(text: str) -> datetime | None:
    """Read an HTTP date; None if it is none."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError, LookupError, TypeError):
        return None
    # HTTP dates are always in GMT, also without a zone.
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _parse_body(body: bytes) -> float | None:
    match = _ASKED_IN_BODY.search(body.decode(errors="replace"))
    if match is None:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(match[1].lower()))


class Tries:
    """Counts the tries of one operation, and waits between them."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._attempt = 0
        self._transmission = 0.0
        self._started = monotonic()

    async def wait(self, error: HttpError, *, transmission: float = 0) -> GiveUp | None:
        """Wait before the next try; returns GiveUp instead if there is none.

        ``transmission`` is how many seconds of the last try went into sending a body, which do not count.
        """
        self._attempt += 1
        self._transmission += transmission
        if error.is_final:
            return GiveUp(is_temporary=False)
        decision = decide(
            self._policy,
            self._attempt,
            error.failure,
            elapsed=monotonic() - self._started - self._transmission,
            jitter=_jitter(),
            now=datetime.now(UTC),
        )
        if isinstance(decision, GiveUp):
            return decision
        fields = {"reason": error.reason, "seconds": decision.delay}
        _log.info("the registry is asked again", extra={"fields": fields})
        await asyncio.sleep(decision.delay)
        return None

"""When a failed request is tried again: every rule as a row of a table."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.http.errors import Failure
from nixcache_oci.clients.http.retry import GiveUp, Retry, RetryPolicy, decide, find_asked_wait, is_rate_limit

_NOW = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
_POLICY = RetryPolicy(attempts=5, patience_seconds=30, first_backoff_seconds=0.5)
_SECONDARY = b'{"message": "You have exceeded a secondary rate limit. Please wait."}'
_GO = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: %s, allowed: 2000/minute"}]}'


def _decide(
    failure: Failure, attempt: int = 1, elapsed: float = 0, jitter: float = 0.5, policy: RetryPolicy = _POLICY
) -> Retry | GiveUp:
    return decide(policy, attempt, failure, elapsed=elapsed, jitter=jitter, now=_NOW)


def _limit(duration: str) -> Failure:
    return Failure(429, {}, _GO.replace(b"%s", duration.encode()))


@pytest.mark.parametrize("status", [None, 200, 206, 408, 429, 500, 502, 503, 504])
def test_tries_temporary_trouble_again(status: int | None) -> None:
    """No answer, a success of no use, overload and broken gateways pass; the first wait is half a second."""
    assert _decide(Failure(status)) == Retry(0.25)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 416, 501, 505])
def test_does_not_repeat_what_was_decided(status: int) -> None:
    """A refusal does not change by asking again, and asking again may bar the client."""
    assert _decide(Failure(status)) == GiveUp(is_temporary=False)


def test_a_manifest_whose_digest_is_right_is_sent_again() -> None:
    """A registry that finds a wrong one stumbled over its own files: eight publishers at once show it."""
    refused = b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}'
    assert _decide(Failure(400, body=refused, is_verified=True)) == Retry(0.25)
    assert _decide(Failure(400, body=refused)) == GiveUp(is_temporary=False)


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        (Failure(429, {"retry-after": "7"}), 7),
        (Failure(503, {"retry-after": " 7 "}), 7),
        (Failure(429, {"retry-after": "0"}), 1),
        (Failure(429, {"retry-after": "Sat, 21 Nov 2026 03:15:20 GMT"}), 20),
        (Failure(429, {"retry-after": "Sat, 21 Nov 2026 03:15:20 -0000"}), 20),
        (Failure(429, {"retry-after": "Sat, 21 Nov 2026 03:00:00 GMT"}), 1),
        (Failure(429, {"retry-after": "soon"}), None),
        (Failure(429, {"retry-after": "Sat, 32 Nov 2026 03:15:20 GMT"}), None),
        (Failure(503, {"retry-after": "99999999"}), 86_400),
        (_limit("1.88ms"), 1),
        (_limit("1m2.5s"), 62.5),
        (_limit("1h0m1s"), 3601),
        (_limit("900\u00b5s"), 1),
        (_limit("900\u03bcs"), 1),
        (_limit("12"), None),
        (Failure(429, {"retry-after": "3"}, _limit("40s").body), 3),
        (Failure(500, {}, _limit("40s").body), None),
        (Failure(403, {}, _SECONDARY), 60),
        (Failure(403, {"retry-after": "5"}, _SECONDARY), 5),
        (Failure(403, {"retry-after": "5"}), 5),
        (Failure(None), None),
    ],
)
def test_reads_the_wait_that_was_asked_for(failure: Failure, seconds: float | None) -> None:
    """The wait comes as seconds, as a date, or as a Go duration in the body, and is never below a second."""
    assert find_asked_wait(failure, _NOW) == seconds


@pytest.mark.parametrize(
    ("jitter", "delay"),
    [(0.0, 10.0), (0.5, 11.25), (0.99, pytest.approx(12.475))],
)
def test_never_waits_less_than_asked(jitter: float, delay: float) -> None:
    """Who comes back early is barred for longer; the random part only adds."""
    decision = _decide(Failure(429, {"retry-after": "10"}), jitter=jitter)
    assert decision == Retry(delay)


def test_secondary_rate_limit_is_no_denial() -> None:
    """GitHub's 403 under load passes after a minute; a 403 that says nothing of it is final."""
    patient = RetryPolicy(patience_seconds=120)
    assert _decide(Failure(403, {}, _SECONDARY), policy=patient, jitter=0) == Retry(60)
    assert _decide(Failure(403, {}, b'{"errors":[{"code":"DENIED"}]}'), policy=patient) == GiveUp(
        is_temporary=False
    )


def test_a_wait_beyond_the_patience_ends_at_once() -> None:
    """Nobody waits half an hour to be told no: the caller learns how long it would have been."""
    assert _decide(Failure(429, {"retry-after": "1800"})) == GiveUp(is_temporary=True, retry_after=1800)
    assert _decide(Failure(403, {}, _SECONDARY)) == GiveUp(is_temporary=True, retry_after=60)


def test_patience_counts_what_was_spent_already() -> None:
    """The sum of all waits is what the caller feels."""
    failure = Failure(429, {"retry-after": "10"})
    assert _decide(failure, elapsed=19, jitter=0) == Retry(10)
    assert _decide(failure, elapsed=21, jitter=0) == GiveUp(is_temporary=True, retry_after=10)


def test_tries_are_bounded() -> None:
    """The last try is the last, whatever patience is left."""
    assert isinstance(_decide(Failure(None), attempt=4), Retry)
    assert _decide(Failure(None), attempt=5) == GiveUp(is_temporary=True)


def test_a_rate_limit_is_sat_out() -> None:
    """GHCR asks for milliseconds where its limit counts by the minute: patience decides, and waits grow."""
    policy = RetryPolicy(attempts=5, patience_seconds=600)
    for failure in (_limit("1.88ms"), Failure(429), Failure(403, {}, _SECONDARY)):
        assert isinstance(_decide(failure, attempt=20, elapsed=300, policy=policy), Retry)
        assert isinstance(_decide(failure, attempt=20, elapsed=599.9, policy=policy), GiveUp)
    assert _decide(_limit("1.88ms"), attempt=1, jitter=0.5, policy=policy) == Retry(1.125)
    assert _decide(_limit("1.88ms"), attempt=2_000, jitter=0.9, policy=policy) == Retry(18)


def test_what_is_heavy_is_sent_a_few_times_only() -> None:
    """Sitting a rate limit out by sending gigabytes again and again would keep it up."""
    policy = RetryPolicy(attempts=5, patience_seconds=600)
    assert isinstance(_decide(Failure(429, is_heavy=True), attempt=4, policy=policy), Retry)
    assert _decide(Failure(429, is_heavy=True), attempt=5, policy=policy) == GiveUp(is_temporary=True)


def test_a_lag_is_not_waited_for_in_minutes() -> None:
    """A blob that some collector took looks like one that lags: who pushed it hears of it in seconds."""
    policy = RetryPolicy(patience_seconds=600)
    failure = Failure(404, is_expected=True)
    decisions = [_decide(failure, attempt=attempt, jitter=1, policy=policy) for attempt in range(1, 6)]
    assert sum(decision.delay for decision in decisions if isinstance(decision, Retry)) <= 7.5
    assert decisions[-1] == GiveUp(is_temporary=True)


def test_backoff_doubles_up_to_a_limit() -> None:
    """Each wait is at most twice the one before, with full jitter, and 20 seconds at most."""
    policy = RetryPolicy(attempts=12, patience_seconds=1000, first_backoff_seconds=0.5)
    decisions = [
        _decide(Failure(502), attempt=attempt, jitter=0.999, policy=policy) for attempt in range(1, 11)
    ]
    delays = [decision.delay for decision in decisions if isinstance(decision, Retry)]
    assert len(delays) == 10
    assert all(after == pytest.approx(before * 2) for before, after in pairwise(delays[:6]))
    assert max(delays) < 20
    assert _decide(Failure(502), attempt=4, jitter=0) == Retry(0)


def test_absence_is_retried_only_where_presence_is_known() -> None:
    """Just after a push a registry may not know what it took; elsewhere 404 is an answer."""
    assert _decide(Failure(404, is_expected=True)) == Retry(0.25)
    assert _decide(Failure(404)) == GiveUp(is_temporary=False)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_expired_signature_sends_back_to_the_registry(status: int) -> None:
    """What the storage refuses is mostly a URL past its time; the registry hands out a fresh one."""
    assert _decide(Failure(status, is_elsewhere=True)) == Retry(0.25)


@given(
    status=st.one_of(st.none(), st.integers(100, 599)),
    retry_after=st.text(max_size=60),
    body=st.binary(max_size=80),
    attempt=st.integers(1, 6),
    elapsed=st.floats(0, 60),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_any_answer_gives_a_bounded_decision(
    *, status: int | None, retry_after: str, body: bytes, attempt: int, elapsed: float, jitter: float
) -> None:
    """A stranger's header or body never breaks the client, nor holds it longer than its patience."""
    failure = Failure(status, {"retry-after": retry_after}, b"retry-after: " + body)
    decision = _decide(failure, attempt=attempt, elapsed=elapsed, jitter=jitter)
    if isinstance(decision, Retry):
        assert decision.delay >= 0
        assert elapsed + decision.delay <= _POLICY.patience_seconds
        assert attempt < _POLICY.attempts or is_rate_limit(failure)

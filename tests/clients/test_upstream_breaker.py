"""The breaker as a table of events."""

import pytest

from nixcache_oci.clients.upstream.peer import Breaker, BreakerState

# Each event: the time in seconds, what happens, the state that it leads to. "ask" is an admitted request,
# "refused" one that is not; the others report on the last admitted one.
_DOWN = "0 ask closed, 0 fail open"
TABLE = {
    "a failure to connect opens it at once": f"{_DOWN}, 29.9 refused open",
    "one probe at a time, and its success closes it": (
        f"{_DOWN}, 30 ask half-open, 30 refused half-open, 31 answer closed, 31 ask closed"
    ),
    "a probe that fails, however, doubles the pause": (
        f"{_DOWN}, 30 ask half-open, 31 fail open, 90.9 refused open, 91 ask half-open, 91 fail open, "
        "210.9 refused open, 211 ask half-open, 211 answer closed, 212 ask closed, 212 fail open, "
        "242 ask half-open"
    ),
    "an abandoned probe leaves room for the next": (
        f"{_DOWN}, 30 ask half-open, 30 abandon open, 30 ask half-open, 30 answer closed"
    ),
}


@pytest.mark.parametrize("events", TABLE.values(), ids=TABLE)
def test_each_event_leads_to_its_state(events: str) -> None:
    """Closed, open and half-open follow each other as promised."""
    breaker = Breaker()
    ticket = -1
    for now, event, state in (one.split() for one in events.split(", ")):
        if event in {"ask", "refused"}:
            admitted = breaker.admit(float(now))
            assert (admitted is not None) == (event == "ask")
            ticket = ticket if admitted is None else admitted
        elif event == "answer":
            breaker.succeed(ticket)
        elif event == "abandon":
            breaker.abandon(ticket)
        else:
            assert breaker.fail(ticket, float(now)) == (state == "open")
        assert breaker.state == state, (now, event)


def test_the_pause_grows_to_five_minutes_and_no_further() -> None:
    """An upstream that comes back is found within five minutes."""
    breaker = Breaker()
    now, pauses = 0.0, []
    for _ in range(7):
        ticket = breaker.admit(now)
        assert ticket is not None
        assert breaker.fail(ticket, now)
        pause = breaker.retry_seconds(now)
        assert pause is not None
        pauses.append(pause)
        now += pause
    assert pauses == [30, 60, 120, 240, 300, 300, 300]


def test_many_that_fail_together_open_it_once() -> None:
    """Requests that were on their way when it opened do not make the pause longer, nor close it."""
    breaker = Breaker()
    tickets = [breaker.admit(0.0) for _ in range(50)]
    outcomes = [breaker.fail(ticket, 1.0) for ticket in tickets if ticket is not None]
    assert outcomes == [True] + [False] * 49
    assert tickets[0] is not None
    breaker.succeed(tickets[0])
    breaker.abandon(tickets[0])
    assert breaker.retry_seconds(1.0) == 30
    assert breaker.admit(31.0) is not None
    assert not breaker.fail(tickets[0], 31.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.retry_seconds(31.0) is None

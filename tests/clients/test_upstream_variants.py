"""Several upstreams at once: whose signatures a client gets, who is waited for, and that loops end."""

import asyncio
from dataclasses import replace

import pytest

from nixcache_oci.clients.upstream import client
from nixcache_oci.clients.upstream.address import MOST_HOPS, is_loop, make_name, parse_via, render_via
from nixcache_oci.clients.upstream.peer import Breaker, BreakerState
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, SecretKey, fingerprint
from tests.support.process import until
from tests.support.upstream_server import (
    HASH_PART,
    Asked,
    answering,
    asking,
    narinfo_text,
    serve,
    silent,
    talk,
)

TRUSTED, OTHER = SecretKey.generate("trusted-1"), SecretKey.generate("other-1")
KEYS = (TRUSTED.public_key,)


def signed(*keys: SecretKey) -> str:
    narinfo = NarInfo.parse(narinfo_text())
    return replace(narinfo, sigs=tuple(key.sign(fingerprint(narinfo)) for key in keys)).render()


def signers(narinfo: NarInfo | None) -> list[str]:
    assert narinfo is not None
    return [sig.key_name for sig in narinfo.sigs]


@pytest.mark.parametrize(
    ("first", "keys"),
    [((), KEYS), ((OTHER,), KEYS), ((OTHER,), ())],
    ids=["unsigned", "signed by another", "no key is known here"],
)
async def test_a_signature_that_counts_is_waited_for(
    first: tuple[SecretKey, ...], keys: tuple[PublicKey, ...]
) -> None:
    """The quickest hides nothing; which keys a client trusts, it alone knows: all are handed on."""
    async with (
        serve(answering(text=signed(*first))) as quick,
        serve(answering(text=signed(TRUSTED), seconds=0.2)) as slow,
        asking(quick, slow, client_keys=keys) as upstreams,
    ):
        assert set(signers(await upstreams.find(HASH_PART))) == {"trusted-1", *(key.name for key in first)}


async def test_a_hit_that_counts_waits_for_nobody() -> None:
    """A slow upstream does not hold up what a trusted one has."""
    async with (
        serve(answering(text=signed(TRUSTED))) as quick,
        talk(silent) as slow,
        asking(slow, quick, client_keys=KEYS) as upstreams,
        asyncio.timeout(2),
    ):
        for _ in range(4):
            assert signers(await upstreams.find(HASH_PART)) == ["trusted-1"]


async def test_who_is_waited_for_in_vain_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that hangs costs the wait once, not for each path."""
    monkeypatch.setattr(client, "ASK_ON_SECONDS", 0.2)
    async with (
        serve(answering(text=signed())) as quick,
        talk(silent) as slow,
        asking(slow, quick, client_keys=KEYS, answer_seconds=60) as upstreams,
    ):
        assert signers(await upstreams.find(HASH_PART)) == []
        monkeypatch.setattr(client, "ASK_ON_SECONDS", 3600.0)
        async with asyncio.timeout(5):
            assert signers(await upstreams.find(HASH_PART)) == []


async def test_who_loses_keeps_its_connection() -> None:
    """A look-up costs the slower upstream no new connection: its answer is read in the background."""
    asked: list[Asked] = []
    async with (
        serve(answering(text=signed(TRUSTED))) as quick,
        serve(answering(status=404, seconds=0.05, asked=asked)) as slow,
        asking(slow, quick, client_keys=KEYS) as upstreams,
    ):
        for number in range(1, 6):
            assert await upstreams.find(HASH_PART) is not None
            await until(lambda: upstreams.health()[0].misses >= number)  # noqa: B023  called at once
    assert len({one.peer for one in asked}) == 1


async def test_losers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never answers does not collect requests in the background."""
    monkeypatch.setattr(client, "MOST_LOSERS", 3)
    begun, over = [0], [0]

    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        begun[0] += 1
        while await reader.read(65536):
            pass
        over[0] += 1

    async with (
        serve(answering(text=signed(TRUSTED), seconds=0.02)) as quick,
        talk(hang) as slow,
        asking(slow, quick, client_keys=KEYS, answer_seconds=60) as upstreams,
    ):
        for _ in range(10):
            assert await upstreams.find(HASH_PART) is not None
        await until(lambda: begun[0] - over[0] <= 3)


async def test_each_request_names_the_proxies_that_it_came_through() -> None:
    """So that whoever finds its own name knows that it asks itself."""
    asked: list[Asked] = []
    first, own = make_name(), make_name()
    async with serve(answering(status=404, asked=asked)) as url, asking(url, name=own) as upstreams:
        for names in ((), (first,), (first, own), tuple(make_name() for _ in range(MOST_HOPS))):
            assert await upstreams.find(HASH_PART, names) is None
    assert [one.headers["Via"] for one in asked] == [f"1.1 {own}", f"1.1 {first}, 1.1 {own}"]


def test_via_is_read_whatever_others_wrote_into_it() -> None:
    """Several headers, other proxies, comments; and nothing of it is believed but names of our form."""
    first, second = make_name(), make_name()
    assert parse_via([]) == ()
    assert parse_via([f"1.1 nginx, 1.1 {first} (comment)", f"1.0 fred,1.1 {second}"]) == (first, second)
    assert parse_via([render_via((first, second))]) == (first, second)
    assert parse_via([f"1.1 x{first}", "1.1 nixcache-oci", "\xff" * 9000]) == ()
    assert is_loop((first,), first)
    assert not is_loop((first,), second)


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

"""When a failed request is tried again: every rule as a row of a table."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import pairwise, product
from typing import TypeAlias

import aiohttp
import pytest
from aioresponses import aioresponses
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.http.errors import Failure
from nixcache_oci.clients.http.retry import GiveUp, Retry, RetryPolicy, decide, is_rate_limit
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from nixcache_oci.oci.reference import RegistryReference
from tests.clients.registry_helper import MANIFEST, NAME, count, opened

_Headers: TypeAlias = dict[str, str]
_Ask: TypeAlias = Callable[[float], Awaitable[object]]

_CONTENT = {"any": "document"}
_DIGEST = Digest.of(json.dumps(_CONTENT).encode())
_REGISTRY = f"http://registry.example/v2/{NAME}/manifests/{_DIGEST}"
_STORAGE = "http://storage.example/tags?sig=x"
_TOKENS = f"http://tokens.example/?scope=repository:{NAME}:pull"
_GITHUB = "https://api.example/orgs/octocat/packages/container/hello%2Fnix-cache/versions?per_page=100"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="http://tokens.example/"'}


async def _ask_registry(patience: float) -> None:
    async with opened("registry.example", None, patience=patience, first_backoff=0.5) as registry:
        assert (await registry.get_manifest(str(_DIGEST))).digest == _DIGEST


async def _ask_github(patience: float) -> None:
    reference = RegistryReference("ghcr.io", plain_http=False, repository=NAME)
    credentials = Credentials("anyone", "ghp", "GITHUB_TOKEN")
    packages = GithubPackages("https://api.example", reference, credentials, patience=patience)
    try:
        assert await packages.untagged() == []
    finally:
        await packages.close()


# Who answers: by what it is asked, where, what comes before its answer, and after one that is good.
_SERVERS: dict[str, tuple[_Ask, str, tuple[int, _Headers] | None, object]] = {
    "registry": (_ask_registry, _REGISTRY, None, _CONTENT),
    "storage": (_ask_registry, _STORAGE, (307, {"Location": _STORAGE}), _CONTENT),
    "tokens": (_ask_registry, _TOKENS, (401, _CHALLENGE), {"token": "issued"}),
    "github": (_ask_github, _GITHUB, None, []),
}

_NONE: _Headers = {}
_SECONDARY = '{"message": "You have exceeded a secondary rate limit. Please wait."}'
_GO = '{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: %s, allowed: 2000/minute"}]}'
_SOON = 0  # after a wait that nobody asked for
_NEVER = None


# Status, headers and body; seconds until the next try.
_ANY_SERVER: list[tuple[int, _Headers, str, float | None]] = [
    # No answer and what stands for overload and broken gateways pass.
    *((status, _NONE, "", _SOON) for status in (0, 408, 429, 500, 502, 503, 504)),
    # A refusal does not change by asking again, and asking again may bar the client.
    *((status, _NONE, "", _NEVER) for status in (402, 405, 409, 412, 413, 416, 451, 501, 505, 511)),
    (429, {"Retry-After": "7"}, "", 7),
    (503, {"Retry-After": " 7 "}, "", 7),
    (429, {"Retry-After": "0"}, "", 1),
    (429, {"Retry-After": "Sat, 21 Nov 2015 03:00:00 GMT"}, "", 1),
    (429, {"Retry-After": "Sat, 21 Nov 2015 03:00:00 -0000"}, "", 1),
    (429, {"Retry-After": "soon"}, "", _SOON),
    (429, {"Retry-After": "Sat, 32 Nov 2026 03:15:20 GMT"}, "", _SOON),
    (503, {"Retry-After": "99999999"}, "", 86_400),
    # GHCR tells the wait in its error document, as a Go duration.
    *((429, _NONE, _GO % text, 1) for text in ("1.88ms", "900\u00b5s", "900\u03bcs", "3ns")),
    (429, _NONE, _GO % "1m2.5s", 62.5),
    (429, _NONE, _GO % "1h0m1s", 3601),
    (429, _NONE, _GO % "12", _SOON),
    (429, {"Retry-After": "3"}, _GO % "40s", 3),
    (500, _NONE, _GO % "40s", _SOON),
    # GitHub's 403 under load is no denial, and passes after a minute.
    (403, _NONE, _SECONDARY, 60),
    (403, {"Retry-After": "5"}, _SECONDARY, 5),
]
# Of nginx and Cloudflare, about the server behind them.
_ANY_SERVER += [(status, _NONE, "", _SOON) for status in (499, 520, 524, 530)]
# The same for one of them.
_OWN: list[tuple[str, int, _Headers, str, float | None]] = [
    *(("registry", status, _NONE, "", _NEVER) for status in (400, 401, 403, 404, 410)),
    *(("tokens", status, _NONE, "", _NEVER) for status in (400, 401, 403, 404, 410)),
    *(("github", status, _NONE, "", _NEVER) for status in (301, 307, 400, 401, 403, 410, 422)),
    ("registry", 403, {"Retry-After": "5"}, '{"errors":[{"code":"DENIED"}]}', _NEVER),
    # What a storage refuses is mostly a URL past its time; the registry hands out a fresh one.
    *(("storage", status, _NONE, "", _SOON) for status in (400, 401, 403, 404, 410)),
    # Bytes were spoilt on the way, or something in between answered.
    *((server, 200, _NONE, "<html>Log in</html>", _SOON) for server in ("registry", "storage", "tokens")),
    # GitHub's primary limit has headers of its own.
    ("github", 403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000000"}, "", 1),
    ("github", 403, {"X-RateLimit-Remaining": "0", "Retry-After": "9"}, "", 9),
    ("github", 403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"}, "", _SOON),
    ("github", 429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 30}, "", 86_400),
    ("github", 403, {"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "9" * 30}, "", _NEVER),
]


def _answer(web: aioresponses, server: str, *answers: tuple[int, _Headers, str]) -> None:
    """Give these answers in a row, and a good one after them."""
    _, url, before, good = _SERVERS[server]
    if before is not None:
        web.get(_REGISTRY, status=before[0], headers=before[1], repeat=server == "storage")
        web.get(_REGISTRY, payload=_CONTENT)
    for status, headers, body in answers:
        exception = None if status else aiohttp.ServerDisconnectedError()
        web.get(url, status=status, headers=headers, body=body, exception=exception)
    web.get(url, body=json.dumps(good))


@pytest.mark.parametrize(
    ("server", "status", "headers", "body", "seconds"),
    [*((server, *row) for server, row in product(_SERVERS, _ANY_SERVER)), *_OWN],
)
async def test_what_follows_an_answer(
    web: aioresponses,
    waits: list[float],
    server: str,
    status: int,
    headers: _Headers,
    body: str,
    seconds: float | None,
) -> None:
    """Final, or tried again, never before the time asked for: who comes back early is barred for longer."""
    ask, url, *_ = _SERVERS[server]
    _answer(web, server, (status, headers, body))
    if seconds is _NEVER:
        with pytest.raises(RegistryError) as raised:
            await ask(200_000)
        assert (raised.value.status, raised.value.is_temporary) == (status, False)
        assert (count(web, url), waits) == (1, [])
    else:
        await ask(200_000)
        assert count(web, url) == 2
        assert [wait for wait in waits if not seconds <= wait <= max(0.5, 1.25 * seconds)] == []
        assert len(waits) == 1


@pytest.mark.parametrize(
    ("server", "name", "render"),
    [
        *((server, "Retry-After", partial(format_datetime, usegmt=True)) for server in _SERVERS),
        ("github", "X-RateLimit-Reset", lambda date: str(int(date.timestamp()))),
    ],
)
async def test_a_wait_may_be_told_as_a_date(
    web: aioresponses, waits: list[float], server: str, name: str, render: Callable[[datetime], str]
) -> None:
    """It counts from now."""
    date = datetime.now(UTC) + timedelta(seconds=1000)
    _answer(web, server, (429, {"X-RateLimit-Remaining": "0", name: render(date)}, ""))
    await _SERVERS[server][0](200_000)
    assert [wait for wait in waits if 900 <= wait <= 1250] == waits != []


@pytest.mark.parametrize("server", _SERVERS)
async def test_a_wait_beyond_the_patience_ends_at_once(
    web: aioresponses, waits: list[float], server: str
) -> None:
    """Nobody waits half an hour to be told no: the caller learns how long it would have been."""
    _answer(web, server, (429, {"Retry-After": "1800"}, ""))
    with pytest.raises(RegistryError, match="it asks to wait 1800 s") as raised:
        await _SERVERS[server][0](60)
    assert (raised.value.status, raised.value.is_temporary, raised.value.retry_after) == (429, True, 1800)
    assert waits == []


@pytest.mark.parametrize("server", _SERVERS)
async def test_tries_are_bounded(web: aioresponses, waits: list[float], server: str) -> None:
    """The last try is the last, whatever patience is left; the caller learns that it may pass."""
    _answer(web, server, *[(502, _NONE, "")] * 5)
    with pytest.raises(RegistryError, match="502 Bad Gateway") as raised:
        await _SERVERS[server][0](200_000)
    assert (raised.value.status, raised.value.is_temporary) == (502, True)
    assert (count(web, _SERVERS[server][1]), len(waits)) == (5, 4)


async def test_a_manifest_whose_digest_is_right_is_sent_again(web: aioresponses) -> None:
    """A registry that finds a wrong one stumbled over its own files: eight publishers at once show it."""
    url = f"http://registry.example/v2/{NAME}/manifests/a"
    for code in ("DIGEST_INVALID", "DIGEST_INVALID", "MANIFEST_INVALID"):
        web.put(url, status=400, payload={"errors": [{"code": code}]})
    async with opened("registry.example", None, push=True) as registry:
        with pytest.raises(RegistryError, match="400 MANIFEST_INVALID"):
            await registry.push_manifest("a", MANIFEST, IMAGE_MANIFEST)
    assert count(web, url, "PUT") == 3


# How long, where nobody asked for more


_NOW = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
_POLICY = RetryPolicy(attempts=5, patience_seconds=30, first_backoff_seconds=0.5)


def _decide(
    failure: Failure, attempt: int = 1, elapsed: float = 0, jitter: float = 0.5, policy: RetryPolicy = _POLICY
) -> Retry | GiveUp:
    return decide(policy, attempt, failure, elapsed=elapsed, jitter=jitter, now=_NOW)


def test_patience_counts_what_was_spent_already() -> None:
    """The sum of all waits is what the caller feels."""
    failure = Failure(429, {"retry-after": "10"})
    assert _decide(failure, elapsed=19, jitter=0) == Retry(10)
    assert _decide(failure, elapsed=21, jitter=0) == GiveUp(is_temporary=True, retry_after=10)


def test_a_rate_limit_is_sat_out() -> None:
    """GHCR asks for milliseconds where its limit counts by the minute: patience decides, and waits grow."""
    policy = RetryPolicy(attempts=5, patience_seconds=600)
    brief = Failure(429, {}, (_GO % "1.88ms").encode())
    for failure in (brief, Failure(429), Failure(403, {}, _SECONDARY.encode())):
        assert isinstance(_decide(failure, attempt=20, elapsed=300, policy=policy), Retry)
        assert isinstance(_decide(failure, attempt=20, elapsed=599.9, policy=policy), GiveUp)
    assert _decide(brief, attempt=1, jitter=0.5, policy=policy) == Retry(1.125)
    assert _decide(brief, attempt=2_000, jitter=0.9, policy=policy) == Retry(18)


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

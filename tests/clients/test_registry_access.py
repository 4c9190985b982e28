"""Tokens and credentials: who is asked for them, who sees them, and what is said when they do not suffice."""

import asyncio
import logging
import re
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from aiohttp import web as server
from aioresponses import aioresponses
from yarl import URL

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.url import basic_authorization
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.registry import token
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.registry.token import Token
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from tests.clients.registry_helper import MANIFEST, NAME, count, opened, owner, sent
from tests.support.ghcr import GhcrDouble
from tests.support.upstream_server import Asked, answering, saying, serve, talk

_WRONG = Credentials("anyone", "ghp_wrong", "GITHUB_TOKEN")
_PASSWORD = Credentials("user", "pass", "config.json")
_BASIC = "Basic dXNlcjpwYXNz"
_HOST = "registry.example"
_MANIFEST = f"http://{_HOST}/v2/{NAME}/manifests/a"
_DIGEST = Digest.of(MANIFEST)
_AUTH = "http://tokens.example/auth"
_BEARER = f'Bearer realm="{_AUTH}?a=%2B",service="the service"'


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        double.put_manifest(NAME, "cache-index", MANIFEST)
        yield double


def _tell(web: aioresponses, *statuses: int, challenge: str = _BEARER, location: str = "") -> None:
    """Answer whoever resolves the tag ``a`` so, in turn."""
    headers = {"Docker-Content-Digest": str(_DIGEST), "WWW-Authenticate": challenge, "Location": location}
    for status in statuses:
        web.head(_MANIFEST, status=status, headers=headers)


def _issue(web: aioresponses, *, refused: bool = False, **answer: object) -> None:
    """Answer whoever asks for a token, once."""
    status = 403 if refused else 200
    web.get(re.compile(re.escape(_AUTH)), status=status, payload=answer or {"token": "issued"})


# Tokens


async def test_one_token_serves_all_requests(ghcr: GhcrDouble, registry: Registry) -> None:
    """However many start at once. One may end before its time: it is renewed, and requests repeated, once."""
    for tokens in (1, 2):
        await asyncio.gather(*(registry.resolve("cache-index") for _ in range(20)))
        await registry.resolve("cache-index")
        assert ghcr.count("token") == tokens
        ghcr.expire_tokens()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, as the client's clock shows them."""
    seconds = [0.0]
    monkeypatch.setattr(token, "monotonic", lambda: seconds[0])
    return seconds


async def test_a_token_is_renewed_before_it_runs_out(
    web: aioresponses, stranger: Registry, clock: list[float]
) -> None:
    """A margin is taken off the lifetime, so that no token runs out on its way."""
    _tell(web, 401, 200, 200, 200)
    _issue(web, token="first", expires_in=300)
    _issue(web, token="second", expires_in=300)
    for clock[0] in (0.0, 100.0, 299.0):
        await stranger.resolve("a")
    assert sent(web, _MANIFEST, "HEAD") == [None, "Bearer first", "Bearer first", "Bearer second"]


@pytest.mark.parametrize("lifetime", [None, 3600, 60, "soon", -1, 0, float("1e300"), 10**400, True, []])
async def test_a_lifetime_may_be_anything(web: aioresponses, stranger: Registry, lifetime: object) -> None:
    """Without a usable one, a minute is assumed."""
    _tell(web, 401, 200, 200, 200)
    _issue(web, access_token="issued", expires_in=lifetime)
    for _ in range(3):
        await stranger.resolve("a")
    assert sent(web, _MANIFEST, "HEAD") == [None, *["Bearer issued"] * 3]


async def test_credentials_for_a_registry_are_shown_to_the_service_it_names(web: aioresponses) -> None:
    """Docker Hub's and GitLab's are elsewhere, and nothing about the service is assumed but the scope."""
    _tell(web, 401, 200)
    _issue(web)
    async with opened(_HOST, _PASSWORD) as registry:
        await registry.resolve("a")
    (asked,) = [url for _, url in web.requests if url.path == "/auth"]
    assert dict(asked.query) == {"a": "+", "service": "the service", "scope": f"repository:{NAME}:pull"}
    assert sent(web, _AUTH) == [_BASIC]


@pytest.mark.parametrize("push", [False, True])
async def test_a_github_token_is_not_sent_to_a_strangers_token_service(
    web: aioresponses, caplog: pytest.LogCaptureFixture, *, push: bool
) -> None:
    """A registry may name any: what is public is read without, and nothing is pushed."""
    _tell(web, 401, 200, 200)
    _issue(web)
    ambient = Credentials("anyone", "ghp_secret", "GITHUB_TOKEN", is_ambient=True)
    async with opened(_HOST, ambient, push=push) as registry:
        if push:
            with pytest.raises(RegistryError, match=r"GITHUB_TOKEN is not sent to; .* NIXCACHE_TOKEN_FILE"):
                await registry.resolve("a")
        else:
            await registry.resolve("a")
            await registry.resolve("a")
    assert sent(web, _AUTH) == ([] if push else [None])
    assert len(caplog.records) == (0 if push else 1)


async def test_an_identity_token_is_exchanged(web: aioresponses) -> None:
    """Some logins leave a refresh token behind, which goes into the body of a POST."""
    _tell(web, 401, 200)
    web.post(f"{_AUTH}?a=%2B", payload={"token": "issued"})
    credentials = Credentials("", "refresh-me", "config.json", is_identity_token=True)
    async with opened(_HOST, credentials, push=True) as registry:
        await registry.resolve("a")
    assert sent(web, _AUTH, "POST") == [None]
    assert parse_qs(web.requests["POST", URL(f"{_AUTH}?a=%2B")][0].kwargs["data"].decode()) == {
        "grant_type": ["refresh_token"],
        "service": ["the service"],
        "client_id": ["nixcache-oci"],
        "scope": [f"repository:{NAME}:pull,push"],
        "refresh_token": ["refresh-me"],
    }


async def test_basic_goes_with_each_request(web: aioresponses) -> None:
    """Small registries have no token service; the first request asks what is wanted."""
    _tell(web, 401, 200, 200, challenge='Basic realm="registry"')
    async with opened(_HOST, _PASSWORD) as registry:
        await registry.resolve("a")
        await registry.resolve("a")
    assert sent(web, _MANIFEST, "HEAD") == [None, _BASIC, _BASIC]


@pytest.mark.parametrize(
    "challenge",
    [
        *("", "Negotiate", 'Basic realm="r"', "Bearer service=x", 'Bearer realm="/auth"'),
        'Bearer realm="http://u:p@h/"',
    ],
)
async def test_a_challenge_that_cannot_be_met_is_final(
    web: aioresponses, stranger: Registry, challenge: str
) -> None:
    """There is no point in asking the same again."""
    web.get(_MANIFEST, status=401, headers={"WWW-Authenticate": challenge})
    with pytest.raises(RegistryError, match=r"401|no usable address") as raised:
        await stranger.get_manifest("a")
    assert not raised.value.is_temporary
    assert sent(web, "") == [None]


@pytest.mark.parametrize("value", ["", 1, "a\nb", None])
async def test_an_answer_without_a_token_is_an_error(web: aioresponses, value: object) -> None:
    """And it is not shown, for what it holds may be secret; such a page says nothing of the credentials."""
    _tell(web, 401)
    for _ in range(5):
        _issue(web, other="secret-thing", token=value)
    async with opened(_HOST, _PASSWORD) as registry:
        with pytest.raises(RegistryError, match="holds no token") as raised:
            await registry.resolve("a")
    assert "secret-thing" not in str(raised.value)
    assert sent(web, _AUTH) == [_BASIC] * 5


@pytest.fixture
def slow(web: aioresponses) -> tuple[asyncio.Event, asyncio.Event]:
    """Whether a token was asked for, and whether it may be issued."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def wait(_url: URL, **_: object) -> None:
        asked.set()
        await may_answer.wait()

    _tell(web, 401, 401, 200)
    web.get(re.compile(_AUTH), payload={"token": "issued"}, callback=wait)
    return asked, may_answer


async def test_one_who_hangs_up_does_not_stop_the_others(slow: tuple[asyncio.Event, asyncio.Event]) -> None:
    """The request for a token outlives whoever asked for it first."""
    asked, may_answer = slow
    async with opened(_HOST, None) as registry:
        first = asyncio.create_task(registry.resolve("a"))
        second = asyncio.create_task(registry.resolve("a"))
        await asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        may_answer.set()
        assert await second == _DIGEST


async def test_closing_ends_a_request_for_a_token(slow: tuple[asyncio.Event, asyncio.Event]) -> None:
    """Nothing goes on behind a closed client."""
    async with opened(_HOST, None) as registry:
        waiting = asyncio.create_task(registry.resolve("a"))
        await slow[0].wait()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_scope_with_delete_that_is_refused_is_asked_for_without(web: aioresponses) -> None:
    """Quay's token service answers 400 to it, and lets whoever may push delete; that is asked once."""
    _tell(web, 401, 200, 401, 200)
    web.get(re.compile(re.escape(_AUTH)), status=400, payload={"error": "Invalid scope"})
    _issue(web, token="first")
    _issue(web, token="second")
    async with opened(_HOST, _PASSWORD, push=True, delete=True) as registry:
        for _ in range(2):
            await registry.resolve("a")
    asked = [url.query["scope"].rpartition(":")[2] for _, url in web.requests if url.path == "/auth"]
    assert sorted(asked) == ["pull,push", "pull,push,delete"]
    assert sent(web, _AUTH) == [_BASIC] * 3


async def test_other_refusals_of_a_token_are_final(web: aioresponses) -> None:
    """A 400 to who asks for no right to delete, or a second one, is an error."""
    for is_deleting, requests in ((False, 1), (True, 2)):
        _tell(web, 401)
        for _ in range(requests):
            web.get(re.compile(re.escape(_AUTH)), status=400)
        async with opened(_HOST, _PASSWORD, push=True, delete=is_deleting) as registry:
            with pytest.raises(RegistryError, match="400"):
                await registry.resolve("a")
    assert sent(web, _AUTH) == [_BASIC] * 3


# Refusals


async def test_wrong_credentials_still_read_what_is_public(
    ghcr: GhcrDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """An expired token must not shut anybody out of a public cache; that is said once."""
    ghcr.private = False
    async with opened(ghcr.host, _WRONG) as registry:
        with caplog.at_level(logging.WARNING):
            await asyncio.gather(*(registry.resolve("cache-index") for _ in range(3)))
            ghcr.expire_tokens()
            await registry.resolve("cache-index")
    assert len(caplog.records) == 1
    assert f"{ghcr.host} refuses the credentials from GITHUB_TOKEN (no token: 403 DENIED" in caplog.text
    assert "reading anonymously" in caplog.text


async def test_wrong_credentials_are_named_by_their_source(ghcr: GhcrDouble) -> None:
    """The line says which credentials were refused, and shows nothing of them."""
    async with opened(ghcr.host, _WRONG) as registry:
        with pytest.raises(
            RegistryError, match=r"403 DENIED .*asked with GITHUB_TOKEN, which is wrong or has expired"
        ) as raised:
            await registry.list_tags()
    assert (raised.value.code, raised.value.is_temporary) == ("DENIED", False)
    assert "read" in str(raised.value)
    assert "ghp_wrong" not in str(raised.value)


async def test_refused_credentials_are_tried_again(
    ghcr: GhcrDouble, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """A token service may refuse once what is right: minutes later, the proxy is no longer anonymous."""
    assert token.SOON_SECONDS < 60 <= token.AGAIN_SECONDS < 600
    ghcr.private = False
    right, ghcr.token = ghcr.token, "not yet"
    async with opened(ghcr.host, Credentials("anyone", right, "GITHUB_TOKEN")) as registry:
        with caplog.at_level(logging.INFO):
            await registry.resolve("cache-index")
            ghcr.token = right
            for clock[0] in (1.0, token.AGAIN_SECONDS - 1):
                await registry.resolve("cache-index")
            assert "takes credentials again" not in caplog.text
            clock[0] = token.AGAIN_SECONDS + 1
            await registry.resolve("cache-index")
        assert "takes credentials again" in caplog.text
    assert caplog.text.count("reading anonymously") == 1


async def test_a_private_cache_comes_back_within_seconds(web: aioresponses, clock: list[float]) -> None:
    """Some token services give anybody a token that opens nothing: nobody waits minutes with it."""
    headers = {"WWW-Authenticate": _BEARER}
    for status in (401, 401, 401, 200):
        web.get(_MANIFEST, status=status, body=MANIFEST, headers=headers, content_type=IMAGE_MANIFEST)
    _issue(web, refused=True)
    _issue(web, token="opens-nothing")
    _issue(web, token="with-rights")
    async with opened(_HOST, _PASSWORD) as registry:
        with pytest.raises(RegistryError, match="401"):
            await registry.get_manifest("a")
        clock[0] = token.SOON_SECONDS + 1
        await registry.get_manifest("a")
    assert sent(web, _AUTH) == [_BASIC, None, _BASIC]
    assert sent(web, _MANIFEST)[-1] == "Bearer with-rights"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_login_that_is_renewed_needs_no_restart(
    web: aioresponses, tmp_path: Path, status: int
) -> None:
    """Passwords of some registries live for hours, and one of them tells their end by a 403."""
    path = tmp_path / "token"
    path.write_text("user:old")
    keyring = Keyring(_HOST, NAME, {"NIXCACHE_TOKEN_FILE": str(path)})
    _tell(web, 401, 200, status, 200, challenge='Basic realm="registry"')
    async with opened(_HOST, keyring) as registry:
        await registry.resolve("a")
        path.write_text("user:newer")
        await registry.resolve("a")
    old, newer = (basic_authorization("user", password) for password in ("old", "newer"))
    assert sent(web, _MANIFEST, "HEAD") == [None, old, old, newer]


async def test_a_new_token_file_counts_for_the_token_service(web: aioresponses, tmp_path: Path) -> None:
    """What it refuses is looked for again at once: before anybody becomes anonymous, and for a publisher."""
    path = tmp_path / "token"
    path.write_text("user:old")
    keyring = Keyring(_HOST, NAME, {"NIXCACHE_TOKEN_FILE": str(path)})
    assert await keyring.find() is not None
    path.write_text("user:newer")
    _tell(web, 401, 200)
    _issue(web, refused=True)
    _issue(web)
    async with opened(_HOST, keyring, push=True) as registry:
        await registry.resolve("a")
    assert sent(web, _AUTH) == [basic_authorization("user", "old"), basic_authorization("user", "newer")]


async def test_anonymous_readers_of_private_caches_learn_what_to_set(ghcr: GhcrDouble) -> None:
    """The remedy stands in the line."""
    async with opened(ghcr.host, None) as registry:
        with pytest.raises(
            RegistryError, match=r"asked anonymously, .* set NIXCACHE_TOKEN_FILE or GITHUB_TOKEN"
        ):
            await registry.list_tags()


# Who sees them


async def test_secrets_never_show(ghcr: GhcrDouble, caplog: pytest.LogCaptureFixture) -> None:
    """Neither tokens nor passwords nor signed URLs are in errors, tracebacks, logs or representations."""
    caplog.set_level(logging.DEBUG)
    digest = ghcr.put_blob(NAME, b"content")
    shown = []
    async with opened(ghcr.host, owner(ghcr), patience=0.3) as registry:
        await registry.list_tags()
        for match in ("manifest-get", "storage-get", "token"):
            ghcr.fault(match, "refuse", times=None)
        for call in (registry.get_manifest("cache-index"), registry.stat_blob(Digest.of(b"x"))):
            with pytest.raises(RegistryError) as raised:
                await call
            shown.append("".join(traceback.format_exception(raised.value)))
        with pytest.raises(RegistryError) as broken:
            async with registry.open_blob(digest):
                pass
        shown.append("".join(traceback.format_exception(broken.value)))
    shown += [repr(owner(ghcr)), repr(Token("registry-token", 0)), repr(Body.of(ghcr.token.encode()))]
    shown += [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]
    tokens = {value for record in ghcr.requests if (value := record.headers.get("Authorization"))}
    secrets = {value.partition(" ")[2] for value in tokens} | {ghcr.token, "registry-token", "sig="}
    assert tokens
    assert not [secret for secret in secrets for text in shown if secret in text]


async def test_a_token_that_left_the_registry_does_not_come_back(
    web: aioresponses, stranger: Registry
) -> None:
    """A server that the registry redirects to may not choose where at the registry the token goes."""
    way = [f"http://{_HOST}/next?x=1", "http://away.example/away", f"http://{_HOST}/back"]
    _tell(web, 401, 302, location=way[0])
    _issue(web)
    for url, location in pairwise(way):
        web.head(url, status=307, headers={"Location": location})
    web.head(way[-1], headers={"Docker-Content-Digest": str(_DIGEST)})
    assert await stranger.resolve("a") == _DIGEST
    assert [sent(web, url, "HEAD") for url in way] == [["Bearer issued"], [None], [None]]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("?n=1000", "more than 5 redirects"),
        ("", "not a plain http"),
        ("ftp://x/", "not a plain http"),
        ("http://user:secret@127.0.0.1/", "not a plain http"),
        ("http://[::1", "not a plain http"),
        ("http://127.0.0.1:99999/", "not a plain http"),
        ("http://127.0.0.1/", "private address"),
    ],
)
async def test_redirects_that_lead_nowhere_end(
    web: aioresponses, stranger: Registry, location: str, reason: str
) -> None:
    """A circle ends, and what is no address of HTTP is not followed."""
    web.get(re.compile(""), status=302, headers={"Location": location}, repeat=True)
    with pytest.raises(RegistryError, match=reason) as raised:
        await stranger.list_tags()
    assert not raised.value.is_temporary
    assert "secret" not in str(raised.value)
    assert count(web, "") == (6 if "more" in reason else 1)


async def test_a_redirect_with_a_page_keeps_its_connection() -> None:
    """Many servers write a line of HTML beside the Location; a new connection for each blob would be slow."""
    ports: set[object] = set()

    async def answer(request: server.Request) -> server.StreamResponse:
        ports.add(request.transport and request.transport.get_extra_info("peername"))
        if request.path == "/there":
            return server.json_response({"tags": []})
        response = server.StreamResponse(status=302, headers={"Location": "/there"})
        await response.prepare(request)
        await asyncio.sleep(0.02)  # the page comes later than the headers
        await response.write(b"<a>there</a>" * 99)
        return response

    async with serve(answer) as url, opened(url.removeprefix("http://"), None) as registry:
        for _ in range(3):
            assert await registry.list_tags() == []
    assert len(ports) == 1


async def test_a_redirect_whose_page_breaks_off_is_followed() -> None:
    """What it says stands in its head; the page is read for the sake of the connection only."""
    async with serve(answering(text='{"tags": []}')) as there:
        head = f"HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 99\r\n\r\n".encode()
        async with talk(saying(head)) as url, opened(url.removeprefix("http://"), None) as registry:
            assert await registry.list_tags() == []


@pytest.mark.parametrize(
    ("status", "header", "value"),
    [
        (302, "Location", "http://public.example/"),
        (401, "WWW-Authenticate", 'Bearer realm="http://public.example/"'),
    ],
)
async def test_a_registry_of_https_is_never_spoken_to_in_the_clear(
    web: aioresponses, status: int, header: str, value: str
) -> None:
    """Not by a redirect, nor by a realm."""
    web.get(re.compile("https:"), status=status, headers={header: value}, body='{"tags": []}')
    async with opened(_HOST, _PASSWORD, plain_http=False, patience=0) as registry:
        with pytest.raises(RegistryError, match=f"{NAME}: .*https"):
            await registry.list_tags()
    assert sent(web, "http:") == []


async def test_other_hosts_are_reached_by_the_proxy(
    ghcr: GhcrDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's is used, with its own credentials, not for loopback; a netrc is not read."""
    seen: list[Asked] = []
    async with serve(answering(text='{"tags": ["a"]}', asked=seen)) as url:
        monkeypatch.setenv("http_proxy", url.replace("//", "//user:p%40ss@"))
        monkeypatch.delenv("no_proxy", raising=False)
        async with opened(_HOST, None) as registry, opened(ghcr.host, owner(ghcr)) as local:
            assert await registry.list_tags() == ["a"]
            await local.resolve("cache-index")
    [asked] = seen
    assert asked.path == f"http://registry.example/v2/{NAME}/tags/list?n=1000"
    assert asked.headers["Proxy-Authorization"] == "Basic dXNlcjpwQHNz"
    assert "Authorization" not in asked.headers

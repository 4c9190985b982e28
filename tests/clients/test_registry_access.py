"""Tokens and credentials: who is asked for them, who sees them, and what is said when they do not suffice."""

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from yarl import URL

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.http.client import HttpClient, Request
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.one_origin import OneOrigin, limit_document
from nixcache_oci.clients.http.upload import Body
from nixcache_oci.clients.http.url import basic_authorization
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.registry import token
from nixcache_oci.clients.registry.token import Token
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from tests.clients.registry_helper import MANIFEST, NAME, connect, opened, owner, reader
from tests.support.ghcr import GhcrDouble
from tests.support.server_thread import ServerThread

_Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_WRONG = Credentials("anyone", "ghp_wrong", "GITHUB_TOKEN")


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        double.put_manifest(NAME, "cache-index", MANIFEST)
        yield double


class Issuer:
    """A registry of one manifest with a token service, as strange as a test wants it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None, bytes]] = []
        self.challenge = ""
        self.token_answer: dict[str, object] = {"token": "issued"}
        self.wanted = "Bearer issued"
        self.token_seconds = 0.0
        self.refused: str | None = None
        self.status = 401
        self._asked = Event()
        self._servers = ServerThread(self._serve)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._servers.ports[0]}"

    def count(self, path: str) -> int:
        return sum(request[1].startswith(path) for request in self.requests)

    def __enter__(self) -> Self:
        self._servers.start()
        self.challenge = f'Bearer realm="http://{self.host}/auth?a=%2B",service="the service"'
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.stop()

    async def asked(self) -> None:
        """Wait until a token is asked for."""
        await asyncio.to_thread(self._asked.wait, 5)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        self.requests.append((request.method, request.raw_path, authorization, await request.read()))
        if request.path.endswith("/auth"):
            self._asked.set()
            await asyncio.sleep(self.token_seconds)
            if self.refused is not None and authorization == self.refused:
                return web.json_response({}, status=403)
            return web.json_response(self.token_answer)
        if authorization != self.wanted:
            status = self.status if authorization else 401
            return web.Response(status=status, headers={"WWW-Authenticate": self.challenge})
        digest = str(Digest.of(MANIFEST))
        return web.Response(
            body=MANIFEST, headers={"Docker-Content-Digest": digest, "Content-Type": IMAGE_MANIFEST}
        )


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        yield server


# Tokens


async def test_one_token_serves_all_requests(ghcr: GhcrDouble) -> None:
    """However many requests start at once, one token is fetched."""
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await asyncio.gather(*(registry.resolve("cache-index") for _ in range(20)))
        await registry.resolve("cache-index")
    assert ghcr.count("token") == 1


async def test_a_refused_token_is_renewed(ghcr: GhcrDouble) -> None:
    """Tokens may end before their time; the request is repeated with a new one, once."""
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await registry.resolve("cache-index")
        ghcr.expire_tokens()
        await asyncio.gather(*(registry.resolve("cache-index") for _ in range(5)))
        assert ghcr.count("token") == 2


async def test_a_token_is_renewed_before_it_runs_out(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A margin is taken off the lifetime, so that no token runs out on its way."""
    seconds = [0.0]
    monkeypatch.setattr(token, "monotonic", lambda: seconds[0])
    issuer.token_answer = {"token": "issued", "expires_in": 300}
    async with opened(issuer.host, None) as registry:
        for seconds[0] in (0.0, 100.0, 299.0):
            await registry.resolve("a")
    assert (issuer.count("/auth"), issuer.count("/v2")) == (2, 4)


@pytest.mark.parametrize("lifetime", [None, 3600, 60, "soon", -1, 0, float("1e300"), 10**400, True, []])
async def test_a_lifetime_may_be_anything(issuer: Issuer, lifetime: object) -> None:
    """Without a usable one, a minute is assumed."""
    issuer.token_answer = {"access_token": "issued", "expires_in": lifetime}
    async with opened(issuer.host, None) as registry:
        for _ in range(3):
            await registry.resolve("a")
    assert issuer.count("/auth") == 1


async def test_realm_and_service_come_from_the_challenge(issuer: Issuer) -> None:
    """Nothing about the token service is assumed; the scope alone is ours."""
    async with opened(issuer.host, Credentials("user", "pass", "test")) as registry:
        await registry.resolve("a")
    method, path, authorization, _ = issuer.requests[1]
    assert (method, authorization) == ("GET", "Basic dXNlcjpwYXNz")
    assert path.startswith("/auth?a=%2B&")
    assert parse_qs(urlsplit(path).query) == {
        "a": ["+"],
        "service": ["the service"],
        "scope": [f"repository:{NAME}:pull"],
    }


@pytest.mark.parametrize("push", [False, True])
async def test_a_github_token_is_not_sent_to_a_strangers_token_service(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, push: bool
) -> None:
    """A registry of this machine may name any: what is public is read without, and nothing is pushed."""
    monkeypatch.setenv("http_proxy", f"http://{issuer.host}")  # which plays the stranger, too
    monkeypatch.delenv("no_proxy", raising=False)
    issuer.challenge = 'Bearer realm="http://stranger.example/auth"'
    ambient = Credentials("anyone", "ghp_secret", "GITHUB_TOKEN", is_ambient=True)
    async with opened(issuer.host, ambient, push=push) as registry:
        if push:
            with pytest.raises(RegistryError, match=r"GITHUB_TOKEN is not sent to; .* NIXCACHE_TOKEN_FILE"):
                await registry.get_manifest("a")
        else:
            await registry.get_manifest("a")
            await registry.get_manifest("a")
    tokens = [each for each in issuer.requests if "/auth" in each[1]]
    assert [each[2] for each in tokens] == ([] if push else [None])
    assert len(caplog.records) == (0 if push else 1)


async def test_credentials_for_a_registry_are_shown_to_the_service_it_names(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker Hub's and GitLab's are elsewhere; who gives credentials for a registry trusts it."""
    monkeypatch.setenv("http_proxy", f"http://{issuer.host}")
    monkeypatch.delenv("no_proxy", raising=False)
    issuer.challenge = 'Bearer realm="http://auth.example/auth"'
    async with opened(issuer.host, Credentials("user", "pass", "config.json")) as registry:
        await registry.get_manifest("a")
    assert issuer.requests[1][1:3] == (
        f"http://auth.example/auth?scope=repository%3A{NAME.replace('/', '%2F')}%3Apull",
        "Basic dXNlcjpwYXNz",
    )


async def test_an_identity_token_is_exchanged(issuer: Issuer) -> None:
    """Some logins leave a refresh token behind, which goes into the body of a POST."""
    credentials = Credentials("", "refresh-me", "config.json", is_identity_token=True)
    async with opened(issuer.host, credentials, push=True) as registry:
        await registry.resolve("a")
    method, path, authorization, body = issuer.requests[1]
    assert (method, path, authorization) == ("POST", "/auth?a=%2B", None)
    assert parse_qs(body.decode()) == {
        "grant_type": ["refresh_token"],
        "service": ["the service"],
        "client_id": ["nixcache-oci"],
        "scope": [f"repository:{NAME}:pull,push"],
        "refresh_token": ["refresh-me"],
    }


async def test_basic_goes_with_each_request(issuer: Issuer) -> None:
    """Small registries have no token service; the first request asks what is wanted."""
    issuer.challenge = 'Basic realm="registry"'
    issuer.wanted = "Basic dXNlcjpwYXNz"
    async with opened(issuer.host, Credentials("user", "pass", "test")) as registry:
        await registry.resolve("a")
        await registry.resolve("a")
    assert [request[2] for request in issuer.requests] == [None, issuer.wanted, issuer.wanted]


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Negotiate",
        'Basic realm="r"',
        "Bearer service=x",
        'Bearer realm="/auth"',
        'Bearer realm="http://u:p@h/"',
    ],
)
async def test_a_challenge_that_cannot_be_met_is_final(issuer: Issuer, challenge: str) -> None:
    """There is no point in asking the same again."""
    issuer.challenge = challenge
    async with opened(issuer.host, None) as registry:
        with pytest.raises(RegistryError, match=r"401|no usable address") as raised:
            await registry.get_manifest("a")
    assert not raised.value.is_temporary
    assert len(issuer.requests) == 1


@pytest.mark.parametrize("answer", [{}, {"token": ""}, {"token": 1}, {"token": "a\nb"}, {"token": None}])
async def test_an_answer_without_a_token_is_an_error(issuer: Issuer, answer: dict[str, object]) -> None:
    """And it is not shown, for what it holds may be secret."""
    issuer.token_answer = {**answer, "other": "secret-thing"}
    async with opened(issuer.host, None) as registry:
        with pytest.raises(RegistryError, match="holds no token") as raised:
            await registry.get_manifest("a")
    assert "secret-thing" not in str(raised.value)


async def test_a_page_instead_of_a_token_is_an_error(ghcr: GhcrDouble) -> None:
    """A login page answers 200, too; it says nothing about the credentials, so nobody falls back for it."""
    ghcr.private = False
    ghcr.fault("token", "garbage", times=None)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match="holds no token"):
            await registry.resolve("cache-index")
    assert all("Authorization" in record.headers for record in ghcr.requests if record.operation == "token")


async def test_one_page_instead_of_a_token_is_forgiven(ghcr: GhcrDouble) -> None:
    """Whatever answered in the token service's place may be gone a moment later."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.fault("token", "garbage")
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.resolve("cache-index") == Digest.of(MANIFEST)


async def test_one_who_hangs_up_does_not_stop_the_others(issuer: Issuer) -> None:
    """The request for a token outlives whoever asked for it first."""
    issuer.token_seconds = 0.2
    async with opened(issuer.host, None) as registry:
        first = asyncio.create_task(registry.resolve("a"))
        second = asyncio.create_task(registry.resolve("a"))
        await issuer.asked()
        first.cancel()
        assert await second == Digest.of(MANIFEST)
        assert first.cancelled()
    assert issuer.count("/auth") == 1


async def test_closing_ends_a_request_for_a_token(issuer: Issuer) -> None:
    """Nothing goes on behind a closed client."""
    issuer.token_seconds = 1
    registry = connect(issuer.host, None)
    waiting = asyncio.create_task(registry.resolve("a"))
    await issuer.asked()
    await registry.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_trouble_of_the_token_service_passes(ghcr: GhcrDouble) -> None:
    """It is tried again like the registry itself."""
    ghcr.fault("token", "status", status=503)
    ghcr.fault("token", "cut")
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await registry.resolve("cache-index")
        ghcr.expire_tokens()
        ghcr.fault("token", "status", status=503, times=None)
        with pytest.raises(RegistryError, match="no token: 503 Service Unavailable") as raised:
            await registry.resolve("cache-index")
    assert raised.value.is_temporary


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


@pytest.mark.parametrize("push", [False, True])
async def test_wrong_credentials_are_named_by_their_source(ghcr: GhcrDouble, *, push: bool) -> None:
    """The line says which credentials were refused, and shows nothing of them."""
    async with opened(ghcr.host, _WRONG, push=push) as registry:
        with pytest.raises(
            RegistryError, match=r"403 DENIED .*asked with GITHUB_TOKEN, which is wrong or has expired"
        ) as raised:
            await registry.push_manifest(
                "a", MANIFEST, IMAGE_MANIFEST
            ) if push else await registry.list_tags()
    assert (raised.value.code, raised.value.is_temporary) == ("DENIED", False)
    assert ("write" if push else "read") in str(raised.value)
    assert "ghp_wrong" not in str(raised.value)


async def test_refused_credentials_are_tried_again(
    ghcr: GhcrDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A token service may refuse once what is right: minutes later, the proxy is no longer anonymous."""
    assert token.SOON_SECONDS < 60 <= token.AGAIN_SECONDS < 600
    seconds = [0.0]
    monkeypatch.setattr(token, "monotonic", lambda: seconds[0])
    ghcr.private = False
    right, ghcr.token = ghcr.token, "not yet"
    async with opened(ghcr.host, Credentials("anyone", right, "GITHUB_TOKEN")) as registry:
        with caplog.at_level(logging.INFO):
            await registry.resolve("cache-index")
            ghcr.token = right
            for seconds[0] in (1.0, token.AGAIN_SECONDS - 1):
                await registry.resolve("cache-index")
            assert "takes credentials again" not in caplog.text
            seconds[0] = token.AGAIN_SECONDS + 1
            await registry.resolve("cache-index")
        assert "takes credentials again" in caplog.text
    assert caplog.text.count("reading anonymously") == 1


async def test_a_private_cache_comes_back_within_seconds(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some token services give anybody a token that opens nothing: nobody waits minutes with it."""
    seconds = [0.0]
    monkeypatch.setattr(token, "monotonic", lambda: seconds[0])
    issuer.refused = "Basic dXNlcjpwYXNz"
    issuer.wanted = "Bearer with-rights"
    async with opened(issuer.host, Credentials("user", "pass", "test")) as registry:
        with pytest.raises(RegistryError, match="401"):
            await registry.get_manifest("a")
        issuer.refused = None
        issuer.token_answer = {"token": "with-rights"}
        seconds[0] = token.SOON_SECONDS + 1
        await registry.get_manifest("a")
    assert issuer.requests[-2][2] == "Basic dXNlcjpwYXNz"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_login_that_is_renewed_needs_no_restart(issuer: Issuer, tmp_path: Path, status: int) -> None:
    """Passwords of some registries live for hours, and one of them tells their end by a 403."""
    path = tmp_path / "token"
    path.write_text("user:old")
    keyring = Keyring(issuer.host, NAME, {"NIXCACHE_TOKEN_FILE": str(path)})
    issuer.challenge = 'Basic realm="registry"'
    issuer.wanted = basic_authorization("user", "old")
    async with opened(issuer.host, keyring) as registry:
        await registry.resolve("a")
        issuer.wanted, issuer.status = basic_authorization("user", "newer"), status
        path.write_text("user:newer")
        await registry.resolve("a")
    assert [request[2] for request in issuer.requests[-2:]] == [
        basic_authorization("user", "old"),
        issuer.wanted,
    ]


async def test_a_new_token_file_counts_for_the_token_service(issuer: Issuer, tmp_path: Path) -> None:
    """What it refuses is looked for again at once: before anybody becomes anonymous, and for a publisher."""
    path = tmp_path / "token"
    path.write_text("user:old")
    keyring = Keyring(issuer.host, NAME, {"NIXCACHE_TOKEN_FILE": str(path)})
    assert await keyring.find() is not None
    issuer.refused = basic_authorization("user", "old")
    path.write_text("user:newer")
    async with opened(issuer.host, keyring, push=True) as registry:
        await registry.resolve("a")
    asked = [request[2] for request in issuer.requests if request[1].startswith("/auth")]
    assert asked == [basic_authorization("user", "old"), basic_authorization("user", "newer")]


async def test_pushing_does_not_fall_back_to_anonymous(ghcr: GhcrDouble) -> None:
    """It could not work, and would hide the reason."""
    ghcr.private = False
    async with opened(ghcr.host, _WRONG, push=True) as registry:
        with pytest.raises(RegistryError, match=r"push blob .*403 DENIED"):
            await registry.push_blob(Digest.of(b"x"), b"x")
    assert ghcr.count("token") == 1


async def test_a_reader_who_pushes_learns_what_is_missing(ghcr: GhcrDouble) -> None:
    """A token without the right to push is good for a token of the registry, and is refused later."""
    async with opened(ghcr.host, reader(ghcr), push=True) as registry:
        with pytest.raises(RegistryError, match=r"403 DENIED .*asked with GH_TOKEN, which needs write"):
            await registry.push_blob(Digest.of(b"x"), b"x")


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


@asynccontextmanager
async def _serving(answer: _Answer) -> AsyncIterator[str]:
    servers = ServerThread(answer)
    servers.start()
    try:
        yield f"127.0.0.1:{servers.ports[0]}"
    finally:
        servers.stop()


async def test_a_token_that_left_the_registry_does_not_come_back() -> None:
    """A server that the registry redirects to may not choose where at the registry the token goes."""
    seen: list[tuple[str, str | None]] = []
    hosts: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append((request.raw_path, request.headers.get("Authorization")))
        if request.path == "/start":
            return web.Response(status=302, headers={"Location": "/next?x=%2B%2f"})
        if request.path == "/next":
            return web.Response(status=307, headers={"Location": f"http://{hosts[0]}/away"})
        if request.path == "/away":
            return web.Response(status=307, headers={"Location": f"http://{hosts[1]}/back"})
        return web.Response(text="done")

    servers = ServerThread(answer, answer)
    servers.start()
    hosts += [f"127.0.0.1:{servers.ports[1]}", f"127.0.0.1:{servers.ports[0]}"]
    client = HttpClient(limit_document(2))
    try:
        reply = await client.send(
            Request("GET", URL(f"http://{hosts[1]}/start")), OneOrigin("Bearer t", allows_http=True)
        )
        assert (await reply.read(100), reply.is_elsewhere) == (b"done", True)
    finally:
        await client.close()
        servers.stop()
    assert seen == [("/start", "Bearer t"), ("/next?x=%2B%2f", "Bearer t"), ("/away", None), ("/back", None)]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/again", "more than 5 redirects"),
        ("", "not a plain http"),
        ("ftp://x/", "not a plain http"),
        ("http://user:secret@127.0.0.1/", "not a plain http"),
        ("http://[::1", "not a plain http"),
        ("http://127.0.0.1:99999/", "not a plain http"),
    ],
)
async def test_redirects_that_lead_nowhere_end(location: str, reason: str) -> None:
    """A circle ends, and what is no address of HTTP is not followed."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location})

    client = HttpClient(limit_document(2))
    async with _serving(answer) as host:
        with pytest.raises(HttpError, match=reason) as raised:
            await client.send(Request("GET", URL(f"http://{host}/")), OneOrigin(None, allows_http=True))
        await client.close()
    assert raised.value.is_final
    assert "secret" not in raised.value.reason


async def test_a_redirect_with_a_page_keeps_its_connection() -> None:
    """Many servers write a line of HTML beside the Location; a new connection for each blob would be slow."""
    ports: set[object] = set()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        ports.add(request.transport and request.transport.get_extra_info("peername"))
        if request.path == "/":
            response = web.StreamResponse(status=302, headers={"Location": "/there"})
            await response.prepare(request)
            await asyncio.sleep(0.02)  # the page comes later than the headers
            await response.write(b"<a>there</a>" * 99)
            return response
        return web.Response(text="done")

    client = HttpClient(limit_document(2))
    async with _serving(answer) as host:
        for _ in range(3):
            reply = await client.send(
                Request("GET", URL(f"http://{host}/")), OneOrigin(None, allows_http=True)
            )
            assert await reply.read(100) == b"done"
            reply.close()
        await client.close()
    assert len(ports) == 1


async def test_a_redirect_whose_page_breaks_off_is_followed() -> None:
    """What it says stands in its head; the page is read for the sake of the connection only."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/":
            return web.Response(text="done")
        response = web.StreamResponse(status=302, headers={"Location": "/there", "Content-Length": "99"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.close()
        return response

    client = HttpClient(limit_document(2))
    async with _serving(answer) as host:
        reply = await client.send(Request("GET", URL(f"http://{host}/")), OneOrigin(None, allows_http=True))
        assert await reply.read(100) == b"done"
        await client.close()


async def test_a_registry_of_https_is_never_spoken_to_in_the_clear() -> None:
    """Not by a redirect, nor by an upload's address, nor by a realm."""
    client = HttpClient(limit_document(2))
    with pytest.raises(HttpError, match="only https"):
        await client.send(
            Request("GET", URL("http://127.0.0.1:1/")), OneOrigin("Bearer t", allows_http=False)
        )
    await client.close()


async def test_loopback_needs_no_proxy(ghcr: GhcrDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy on the way to this machine itself could only be a mistake."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await registry.resolve("cache-index")


async def test_other_hosts_are_reached_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy is used, with its own credentials, and a netrc is not read."""
    seen: list[tuple[str, str | None, str | None]] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        seen.append((request.raw_path, headers.get("Authorization"), headers.get("Proxy-Authorization")))
        return web.Response(body=json.dumps({"tags": ["a"]}).encode())

    async with _serving(answer) as host:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@{host}")
        monkeypatch.delenv("no_proxy", raising=False)
        async with opened("registry.example", None) as registry:
            assert await registry.list_tags() == ["a"]
    assert seen == [(f"http://registry.example/v2/{NAME}/tags/list?n=10000", None, "Basic dXNlcjpwQHNz")]

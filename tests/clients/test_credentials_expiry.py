"""Logins that live for hours (ECR's twelve, Google's one), with the helpers that renew them."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.http.url import basic_authorization
from nixcache_oci.clients.keyring import LOOK_SECONDS, Keyring
from nixcache_oci.clients.registry import token
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import NAME, opened
from tests.support.upstream_server import serve

_DENIED = {"errors": [{"code": "DENIED", "message": "Your authorization token has expired. Reauthenticate."}]}
_NO_LOGIN = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}

# What the helpers do, by their sources: both read the server, and answer on standard output.
_ECR_LOGIN = """\
[ "$1" = get ] || exit 2
server=$(cat)
[ "$server" = "$(cat HERE/server)" ] || { echo "credentials not found in native keychain"; exit 1; }
echo run >> HERE/runs
printf '{"ServerURL":"%s","Username":"AWS","Secret":"%s"}\\n' "$server" "$(cat HERE/session)"
"""
_GCLOUD = """\
[ "$1" = get ] || exit 2
server=$(cat)
case "${server#https://}" in
  "$(cat HERE/server)") ;;
  *) echo "ERROR: (gcloud.auth.docker-helper) Repository url [$server] is not supported" >&2; exit 1 ;;
esac
echo run >> HERE/runs
printf '{\\n  "Secret": "%s",\\n  "Username": "_dcgcloud_token"\\n}\\n' "$(cat HERE/session)"
"""
_HELPERS = {"ecr-login": (_ECR_LOGIN, "AWS"), "gcloud": (_GCLOUD, "_dcgcloud_token")}


class Cloud:
    """A registry whose passwords run out: ECR's takes them itself, Google's has a token service.

    Attributes:
        session: the password that is valid now.
        is_public: whether who has no login may read.
        expires_at: the method of the request that meets the end of the session.
        late: while there is one, who is refused first hears of it last: once this is set.
        held: whether somebody waits for it.
        seen: the Authorization of the last request that was served.
    """

    def __init__(self, folder: Path, helper: str) -> None:
        self.folder = folder
        self.script, self.user = _HELPERS[helper]
        self.has_tokens = helper == "gcloud"
        self.blobs: dict[str, bytes] = {}
        self.is_public = False
        self.expires_at: str | None = None
        self.late: asyncio.Event | None = None
        self.held = asyncio.Event()
        self.seen: str | None = None
        self.session = ""
        self.start_session("first")
        path = folder / f"docker-credential-{helper}"
        path.write_text("#!/bin/sh\n" + self.script.replace("HERE", str(folder)))
        path.chmod(0o755)
        self.helper = helper

    def start_session(self, session: str) -> None:
        """End the old session; whoever asks the helper, or reads the file, gets the new one."""
        self.session = session
        (self.folder / "session").write_text(session)
        (self.folder / "token").write_text(f"{self.user}:{session}")

    @property
    def runs(self) -> int:
        """How often the helper was asked."""
        return len((self.folder / "runs").read_text().splitlines())

    def keyring(self, clock: list[float], host: str, *, by_file: bool = False) -> Keyring:
        if by_file:
            return Keyring(host, NAME, {"NIXCACHE_TOKEN_FILE": str(self.folder / "token")}, lambda: clock[0])
        (self.folder / "server").write_text(host)
        (self.folder / "config.json").write_text(json.dumps({"credHelpers": {host: self.helper}}))
        environment = {
            "DOCKER_CONFIG": str(self.folder),
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        return Keyring(host, NAME, environment, lambda: clock[0])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return self._issue(request)
        if (refusal := self._refuse(request)) is not None:
            if self.late is not None and refusal.status == 403 and not self.held.is_set():
                self.held.set()
                await self.late.wait()
            return refusal
        self.seen = request.headers.get("Authorization")
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": f"/v2/{NAME}/blobs/uploads/1"})
        if request.method == "PUT":
            self.blobs[request.query["digest"]] = await request.read()
            return web.Response(status=201)
        if request.path.endswith("/tags/list"):
            return web.json_response({"name": NAME, "tags": ["a"]})
        return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)

    def _issue(self, request: web.Request) -> web.Response:
        authorization = request.headers.get("Authorization")
        if authorization is None and self.is_public:
            return web.json_response({"token": "anonymous"})
        if not self._is_valid(authorization):
            return web.json_response(_DENIED, status=403)
        return web.json_response({"token": f"of-{self.session}", "expires_in": 3600})

    def _refuse(self, request: web.Request) -> web.Response | None:
        if request.method == self.expires_at:
            self.expires_at = None
            self.start_session("in-the-middle")
        authorization = request.headers.get("Authorization")
        if self.has_tokens:
            if authorization == f"Bearer of-{self.session}" or (authorization and self.is_public):
                return None
            challenge = f'Bearer realm="http://{request.host}/token",service="cloud"'
        else:
            if self._is_valid(authorization):
                return None
            if authorization is not None:
                return web.json_response(_DENIED, status=403)
            challenge = 'Basic realm="cloud"'
        return web.json_response(_NO_LOGIN, status=401, headers={"WWW-Authenticate": challenge})

    def _is_valid(self, authorization: str | None) -> bool:
        return authorization == basic_authorization(self.user, self.session)


@asynccontextmanager
async def serving(cloud: Cloud) -> AsyncIterator[str]:
    async with serve(cloud.answer) as url:
        yield url.removeprefix("http://")


@pytest.fixture(params=_HELPERS)
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Cloud:
    return Cloud(tmp_path, request.param)


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


async def test_a_proxy_outlives_its_login(cloud: Cloud, clock: list[float]) -> None:
    """However many requests meet the end of a session at once: each goes again with the new login."""
    async with serving(cloud) as host, opened(host, cloud.keyring(clock, host)) as registry:
        for session in ("first", "second", "third"):
            cloud.start_session(session)
            clock[0] += 12 * 3600
            await asyncio.gather(*(registry.list_tags() for _ in range(8)))
    assert cloud.runs == 3


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_publish_outlives_its_login(
    cloud: Cloud, clock: list[float], method: str, *, by_file: bool
) -> None:
    """The session may end between two blobs, or while one is sent; a token file counts at once."""
    contents = [b"one", b"two", b"three"]
    async with (
        serving(cloud) as host,
        opened(host, cloud.keyring(clock, host, by_file=by_file), push=True) as registry,
    ):
        for number, content in enumerate(contents):
            clock[0] += 3600 if not by_file else 0.1
            if number == 1:
                cloud.expires_at = method
            await registry.push_blob(Digest.of(content), content)
    assert cloud.blobs == {str(Digest.of(content)): content for content in contents}


async def test_a_login_that_stays_refused_is_reported(cloud: Cloud, clock: list[float]) -> None:
    """One more look, and then the line that names the helper."""
    async with serving(cloud) as host, opened(host, cloud.keyring(clock, host), push=True) as registry:
        await registry.list_tags()
        cloud.session = "another"
        clock[0] += 3600
        with pytest.raises(RegistryError, match=f"asked with docker-credential-{cloud.helper}"):
            await registry.list_tags()
    assert cloud.runs == 2


async def test_a_refusal_that_comes_late_is_of_the_old_login(tmp_path: Path, clock: list[float]) -> None:
    """Another request may have renewed the login meanwhile: this one goes again with it, too."""
    cloud = Cloud(tmp_path, "ecr-login")
    async with serving(cloud) as host, opened(host, cloud.keyring(clock, host)) as registry:
        await registry.list_tags()
        cloud.start_session("second")
        clock[0] += 12 * 3600
        late = cloud.late = asyncio.Event()
        slow = asyncio.create_task(registry.list_tags())
        await cloud.held.wait()
        await registry.list_tags()
        late.set()
        assert await slow == ["a"]
    assert cloud.runs == 2


@pytest.mark.parametrize("is_public", [False, True])
async def test_who_reads_anonymously_meanwhile_takes_the_new_login_at_once(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch, *, is_public: bool
) -> None:
    """What was refused is tried again after minutes; what replaced it, with the next request."""
    monkeypatch.setattr(token, "AGAIN_SECONDS", 1e6)
    cloud = Cloud(tmp_path, "gcloud")
    cloud.is_public = True
    async with serving(cloud) as host:
        keyring = cloud.keyring(clock, host, by_file=True)
        cloud.session = "lost"
        async with opened(host, keyring) as registry:
            await registry.list_tags()
            assert cloud.seen == "Bearer anonymous"
            cloud.start_session("renewed")
            cloud.is_public = is_public
            # Files are looked at every few seconds, and once more if something is refused.
            clock[0] += LOOK_SECONDS if is_public else 0
            await registry.list_tags()
            assert cloud.seen == "Bearer of-renewed"


async def test_credentials_that_never_change_are_not_asked_twice(tmp_path: Path) -> None:
    """A 403 that no other login can mend costs no further request."""
    cloud = Cloud(tmp_path, "ecr-login")
    requests = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return await cloud.answer(request)

    async with serve(answer) as url:
        stale = Credentials("AWS", "stale", "the test")
        async with opened(url.removeprefix("http://"), stale) as registry:
            with pytest.raises(RegistryError, match="403 DENIED"):
                await registry.list_tags()
    assert requests == 2

"""Logins that run out, with whole programs: a proxy that goes on for months, a publish that takes hours."""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.ghcr_manners import PERSONAS
from tests.support.journey import put
from tests.support.nix import NixSandbox
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject
from tests.support.publisher import Machine, assert_substitutable
from tests.support.registries import REPO, Ghcr, RunningRegistry

pytestmark = pytest.mark.needs("nix")

_MOST_SECONDS: Final = 60
# The real program, but for a pause: a helper is not asked again within seconds, and sessions last for hours.
_PROGRAM: Final = (
    "import sys; from nixcache_oci.clients import keyring; from nixcache_oci.cli.main import main;"
    " keyring._HELPER_SECONDS = 0; sys.exit(main())"
)
_HELPER: Final = """#!/bin/sh
[ "$1" = get ] || exit 2
printf '{"ServerURL":"%s","Username":"AWS","Secret":"%s"}' "$(cat)" "$(cat HERE/session)"
"""


class Login(ABC):
    """Where programs find the password of the registry, and how it is renewed there."""

    def __init__(self, ghcr: Ghcr, folder: Path) -> None:
        self.server = ghcr.server
        self._folder = folder
        self._sessions = 0
        self._keep(self.server.token)

    def renew(self) -> None:
        """End the session: from now on, the registry takes only what is found when one looks again."""
        self._sessions += 1
        self.server.token = f"session-{self._sessions}"
        self.server.expire_tokens()
        self._keep(self.server.token)

    @property
    def registry(self) -> Ghcr:
        return RunningRegistry(self.server, self.server.user, self.server.token)

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Environment variables of the programs."""

    def _keep(self, password: str) -> None:
        part = self._folder / "part"
        part.write_text(self._line(password))
        part.replace(self._folder / "session")

    @abstractmethod
    def _line(self, password: str) -> str: ...


class TokenFile(Login):
    """A timer writes it anew, as for Google: tokens of a service end with the password that they came by."""

    persona = "google"

    @property
    def settings(self) -> dict[str, str]:
        return {"NIXCACHE_TOKEN_FILE": str(self._folder / "session")}

    def _line(self, password: str) -> str:
        return f"oauth2accesstoken:{password}\n"


class CredentialHelper(Login):
    """Docker's, as for ECR: the password goes with each request, and one that has expired gets 403."""

    persona = "ecr"

    @property
    def settings(self) -> dict[str, str]:
        helper = self._folder / "docker-credential-ecr-login"
        helper.write_text(_HELPER.replace("HERE", str(self._folder)))
        helper.chmod(0o755)
        config = {"credHelpers": {self.server.host: "ecr-login"}}
        (self._folder / "config.json").write_text(json.dumps(config))
        return {"DOCKER_CONFIG": str(self._folder), "PATH": f"{self._folder}:{os.environ['PATH']}"}

    def _line(self, password: str) -> str:
        return password


@pytest.fixture(params=[TokenFile, CredentialHelper])
def login(ghcr: Ghcr, tmp_path: Path, request: pytest.FixtureRequest) -> Login:
    kind: type[TokenFile | CredentialHelper] = request.param
    ghcr.server.behave(PERSONAS[kind.persona])
    return kind(ghcr, tmp_path)


class PatchedMachine(Machine):
    """Runs the program as the proxy beside it does."""

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-c", _PROGRAM, *arguments]


@contextmanager
def proxying(login: Login, folder: Path) -> Iterator[ProxyProcess]:
    settings = {"NIXCACHE_REGISTRY": login.server.host, "NIXCACHE_REPO": REPO, **login.settings}
    with ProxyProcess(folder, command=(sys.executable, "-c", _PROGRAM, "proxy"), **settings) as proxy:
        proxy.wait_ready()
        yield proxy


def paths_of(*objects: StoreObject) -> list[str]:
    return [str(one.narinfo.store_path) for one in objects]


def test_a_proxy_goes_on_through_many_sessions(login: Login, tmp_path: Path) -> None:
    """What was published in each, it lists and serves; what it had, too."""
    things = [store_object(f"thing-{number}") for number in range(4)]
    put(login.registry, things[:1], in_packs=False)
    with proxying(login, tmp_path / "proxy") as proxy:
        for number in range(1, 4):
            login.renew()
            assert_substitutable(proxy, paths_of(things[number - 1]))
            put(login.registry, things[number : number + 1], in_packs=False)
            assert proxy.refresh() == {"refreshed": True, "entries": number + 1}
        assert_substitutable(proxy, paths_of(*things))
        assert "expired" not in proxy.log


def test_a_session_ends_in_the_middle_of_a_publish(
    login: Login, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """It ends well, and a proxy of the same login serves it."""
    paths = [nix.build_file(f"file-{number}", os.urandom(400_000)) for number in range(3)]
    settings = {"NIXCACHE_REGISTRY": login.server.host, "NIXCACHE_REPO": REPO, **login.settings}
    machine = PatchedMachine(tmp_path / "machine", nix, {**settings, "NIX_SIGNING_KEY": key.render()})
    login.server.fault("upload-post", "stall", skip=1)
    publish = machine.start("push", *paths)
    wait_until(lambda: login.server.count("upload-post") > 1 or publish.poll() is not None)
    assert publish.poll() is None
    login.renew()

    def has_ended() -> bool:
        login.server.release()  # again: the request may have arrived, and not be held yet
        return publish.poll() is not None

    wait_until(has_ended)
    _, log = publish.communicate()
    assert publish.returncode == 0, log
    with proxying(login, tmp_path / "proxy") as proxy:
        assert_substitutable(proxy, paths)


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + _MOST_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)

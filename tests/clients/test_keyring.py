"""Credentials that are replaced while the program runs."""

import base64
import json
import os
from pathlib import Path

import pytest

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.keyring import LOOK_SECONDS, Keyring
from nixcache_oci.errors import UsageError
from tests.clients.test_credential_helper import write_helper


class Clock:
    """Monotonic seconds, which a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float = LOOK_SECONDS) -> None:
        self.seconds += seconds


def _login(path: Path, **passwords: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    auths = {
        host.replace("__", "."): {"auth": base64.b64encode(f"me:{password}".encode()).decode()}
        for host, password in passwords.items()
    }
    path.write_text(json.dumps({"auths": auths}))


def _ring(environment: dict[str, str], clock: Clock | None = None, host: str = "quay.io") -> Keyring:
    return Keyring(host, "org/app/nix-cache", environment, clock or Clock())


async def _password(keyring: Keyring, refused: Credentials | None = None) -> str | None:
    found = await keyring.find(refused=refused)
    return found.password if found is not None else None


async def test_the_order(tmp_path: Path) -> None:
    """The token file, the variable, GitHub's own, logins, nothing."""
    token = tmp_path / "token"
    token.write_text("me:of-file\n")
    _login(tmp_path / ".docker/config.json", ghcr__io="of-docker")
    environment = {
        "NIXCACHE_TOKEN_FILE": str(token),
        "NIXCACHE_TOKEN": "of-variable",
        "GITHUB_TOKEN": "of-github",
        "HOME": str(tmp_path),
    }
    found = []
    for name in list(environment):
        found.append(await _password(_ring(environment, host="ghcr.io")))
        del environment[name]
    assert found == ["of-file", "of-variable", "of-github", "of-docker"]
    assert await _password(_ring({}, host="ghcr.io")) is None


async def test_the_source_is_named(tmp_path: Path) -> None:
    """A refusal says which credentials are meant."""
    token = tmp_path / "token"
    token.write_text("x")
    keyring = _ring({"NIXCACHE_TOKEN_FILE": str(token)})
    assert keyring.current is not None
    assert keyring.current.source == f"NIXCACHE_TOKEN_FILE ({token})"


@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "empty", "two lines", "huge"])
def test_a_token_file_that_cannot_be_used_stops_the_start(tmp_path: Path, kind: str) -> None:
    """The error names the variable and the file, and shows nothing of its content."""
    path = tmp_path / "token"
    match kind:
        case "folder":
            path.mkdir()
        case "binary":
            path.write_bytes(b"\xff\xfe")
        case "empty":
            path.write_text(" \n")
        case "two lines":
            path.write_text("secret-word\nother\n")
        case "huge":
            path.write_bytes(b"x" * (1024 * 1024 + 1))
    with pytest.raises(UsageError, match=f"^NIXCACHE_TOKEN_FILE: {path} ") as raised:
        _ring({"NIXCACHE_TOKEN_FILE": str(path)})
    assert "secret-word" not in str(raised.value)


@pytest.mark.parametrize("way", ["write", "replace", "same size and time"])
async def test_a_changed_token_file_is_read_again(tmp_path: Path, way: str) -> None:
    """Whoever renews a token that lives for hours writes the file, and restarts nothing."""
    path, clock = tmp_path / "token", Clock()
    path.write_text("old-token")
    keyring = _ring({"NIXCACHE_TOKEN_FILE": str(path)}, clock)
    assert await _password(keyring) == "old-token"
    if way == "write":
        path.write_text("a newer token".replace(" ", "-"))
    else:
        before = path.stat()
        (tmp_path / "new").write_text("new-token")
        if way == "same size and time":
            os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "new").replace(path)
    assert await _password(keyring) == "old-token"  # it was looked at a moment ago
    clock.wait()
    assert await _password(keyring) in {"a-newer-token", "new-token"}


async def test_a_refusal_looks_at_once(tmp_path: Path) -> None:
    """What was refused may have been replaced a moment ago."""
    path = tmp_path / "token"
    path.write_text("old")
    keyring = _ring({"NIXCACHE_TOKEN_FILE": str(path)})
    old = await keyring.find()
    path.write_text("newer")
    assert await _password(keyring, old) == "newer"


@pytest.mark.parametrize("content", [None, "", "a\nb"])
async def test_a_token_file_that_becomes_useless_is_one_warning(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may be writing it just now: what it held before is the best there is."""
    path, clock = tmp_path / "token", Clock()
    path.write_text("old")
    keyring = _ring({"NIXCACHE_TOKEN_FILE": str(path)}, clock)
    await keyring.find()
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    for _ in range(3):
        clock.wait()
        assert await _password(keyring) == "old"
    assert len(caplog.records) == 1
    path.write_text("newer")
    clock.wait()
    assert await _password(keyring) == "newer"


async def test_a_login_that_comes_later_counts(tmp_path: Path) -> None:
    """``docker login`` while the proxy runs is enough, also where there was no file at all."""
    clock = Clock()
    keyring = _ring({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}, clock)
    assert await _password(keyring) is None
    for path, password in (
        (tmp_path / ".docker/config.json", "docker"),
        (tmp_path / ".config/containers/auth.json", "podman"),
        (tmp_path / "run/containers/auth.json", "session"),
    ):
        _login(path, quay__io=password)
        clock.wait()
        assert await _password(keyring) == password


async def test_the_next_file_counts_where_one_knows_nothing(tmp_path: Path) -> None:
    """Who has logged in to one registry by podman and to another by docker has both."""
    _login(tmp_path / ".config/containers/auth.json", ghcr__io="podman")
    _login(tmp_path / ".docker/config.json", quay__io="docker")
    assert await _password(_ring({"HOME": str(tmp_path)})) == "docker"


async def test_a_helper_is_asked_once_until_it_is_refused(tmp_path: Path) -> None:
    """It may take seconds; what it gives lives for hours, and ends."""
    clock = Clock()
    environment = write_helper(
        tmp_path,
        f"echo x >> {tmp_path}/runs; n=$(wc -l < {tmp_path}/runs); "
        """echo "{\\"Username\\":\\"me\\",\\"Secret\\":\\"pw$n\\"}" """,
    )
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"credHelpers": {"quay.io": "test"}}))
    keyring = _ring({**environment, "HOME": str(tmp_path)}, clock)
    first = await keyring.find()
    clock.wait(100)
    assert await keyring.find() == first
    second = await keyring.find(refused=first)
    assert second is not None
    assert second.password == "pw2"
    assert await _password(keyring, second) == "pw2"  # a registry that refuses all does not run it each time
    clock.wait(10)
    assert await _password(keyring, second) == "pw3"

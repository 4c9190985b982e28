"""Credentials that are replaced while the program runs."""

import base64
import json
import logging
import os
from pathlib import Path

import pytest

from nixcache_oci.clients import auth_file
from nixcache_oci.clients.auth_file import Helper, ask_helper
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.keyring import LOOK_SECONDS, Keyring
from nixcache_oci.errors import UsageError


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


async def test_a_refusal_looks_at_once(tmp_path: Path) -> None:
    """What was refused may have been replaced a moment ago; its source is named."""
    path = tmp_path / "token"
    path.write_text("old")
    keyring = _ring({"NIXCACHE_TOKEN_FILE": str(path)})
    old = await keyring.find()
    assert old is not None
    assert old.source == f"NIXCACHE_TOKEN_FILE ({path})"
    path.write_text("newer")
    assert await _password(keyring, old) == "newer"


@pytest.mark.parametrize(
    "content",
    [None, "", b"\xff\xfe", b" \n", b"secret-word\nother\n", b"x" * (2**20 + 1)],
    ids=["missing", "folder", "binary", "empty", "two lines", "huge"],
)
def test_a_token_file_that_cannot_be_used_stops_the_start(
    tmp_path: Path, content: bytes | str | None
) -> None:
    """The error names the variable and the file, and shows nothing of its content."""
    path = tmp_path / "token"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
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


_LOGIN = '{"ServerURL":"quay.io","Username":"me","Secret":"secret-word"}'
_HELPER = Helper("test", "quay.io")


def write_helper(folder: Path, text: str, name: str = "test") -> dict[str, str]:
    """Write a helper, and give an environment that finds it."""
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


async def test_what_a_helper_complains_about_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may want a password, or a login of the cloud that it belongs to; a flood of lines is cut."""
    environment = write_helper(
        tmp_path, f"i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo 'log in first' >&2; done; echo '{_LOGIN}'"
    )
    with caplog.at_level(logging.WARNING):
        assert await ask_helper(_HELPER, environment) is not None
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["docker-credential-test: log in first"] * 20


async def test_a_helper_without_a_login_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most machines have no login for most registries."""
    environment = write_helper(tmp_path, "echo 'credentials not found in native keychain'; exit 1")
    assert await ask_helper(_HELPER, environment) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'the key ring is locked'; exit 1", "the key ring is locked"),
        *(("exit 3", "it ended with status 3"), ("echo '{}'", "something other than a login")),
        ("echo secret-word", "something other than a login"),
        ('echo \'{"Username":"me","Secret":""}\'', "something other than a login"),
        ("head -c 100000 /dev/zero", "wrote more than 65536 bytes"),
    ],
)
async def test_trouble_is_one_warning(
    tmp_path: Path, script: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A helper that is of no use stops nobody: public caches need no login. Its answer is never shown."""
    assert await ask_helper(_HELPER, write_helper(tmp_path, script)) is None
    assert [expected in record.getMessage() for record in caplog.records] == [True]
    assert "secret-word" not in caplog.text


async def test_a_helper_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A start waits so long and no longer, whatever a program waits for."""
    monkeypatch.setattr(auth_file, "_HELPER_SECONDS", 0.2)
    environment = write_helper(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    assert await ask_helper(_HELPER, environment) is None
    assert "did not answer within" in caplog.text
    pid = (tmp_path / "pid").read_text().strip()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_a_helper_is_asked(tmp_path: Path) -> None:
    """It gets the server on standard input; its answer is a login, or a refresh token, marked so."""
    environment = write_helper(tmp_path, f'[ "$1" = get ] && [ "$(cat)" = quay.io ] && echo \'{_LOGIN}\'')
    source = "docker-credential-test"
    assert await ask_helper(_HELPER, environment) == Credentials("me", "secret-word", source)
    environment = write_helper(tmp_path, """echo '{"Username":"<token>","Secret":"idt"}'""")
    assert await ask_helper(_HELPER, environment) == Credentials("", "idt", source, is_identity_token=True)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "a b", "a\nb", "x" * 65, "$(id)", "gone"])
async def test_only_a_name_is_a_name(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who may write the file of logins may not choose any program by it; one that is missing is named."""
    (tmp_path / "x").write_text("#!/bin/sh\ntouch ran\n")
    assert await ask_helper(Helper(name, "quay.io"), {"PATH": str(tmp_path)}) is None
    missing = "docker-credential-gone is not in PATH, but has the login for quay.io"
    assert (missing if name == "gone" else "cannot be the name of a credential helper") in caplog.text


async def test_a_helper_sees_none_of_our_secrets(tmp_path: Path) -> None:
    """It is another's program: it gets what it needs to find its own files and to reach its cloud."""
    environment = write_helper(tmp_path, f"env > {tmp_path}/seen; echo '{_LOGIN}'")
    secrets = ("NIX_SIGNING_KEY", "NIXCACHE_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "LD_PRELOAD")
    passed = {"HOME": "/h", "AWS_PROFILE": "p", "XDG_RUNTIME_DIR": "/r", "https_proxy": "http://p:1"}
    await ask_helper(_HELPER, {**environment, **passed, **dict.fromkeys(secrets, "s")})
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert not set(secrets) & set(seen)
    assert passed.items() <= seen.items()

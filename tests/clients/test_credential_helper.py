"""Docker's credential helpers, as real programs."""

import logging
import os
from pathlib import Path

import pytest

from nixcache_oci.clients import auth_file
from nixcache_oci.clients.auth_file import Helper, ask_helper
from nixcache_oci.clients.credentials import Credentials

_LOGIN = '{"ServerURL":"quay.io","Username":"me","Secret":"secret-word"}'
_HELPER = Helper("test", "quay.io")


def write_helper(folder: Path, text: str, name: str = "test") -> dict[str, str]:
    """Write a helper, and give an environment that finds it."""
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


async def test_a_helper_is_asked(tmp_path: Path) -> None:
    """It gets the server on standard input, and its answer is a login."""
    environment = write_helper(tmp_path, f'[ "$1" = get ] && [ "$(cat)" = quay.io ] && echo \'{_LOGIN}\'')
    assert await ask_helper(_HELPER, environment) == Credentials(
        "me", "secret-word", "docker-credential-test"
    )


async def test_an_identity_token_is_marked_by_its_user(tmp_path: Path) -> None:
    """Some clouds' helpers give a refresh token, which goes another way to the token service."""
    environment = write_helper(tmp_path, """echo '{"Username":"<token>","Secret":"idt"}'""")
    found = await ask_helper(_HELPER, environment)
    assert found == Credentials("", "idt", "docker-credential-test", is_identity_token=True)


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
        ("exit 3", "it ended with status 3"),
        ("echo '{}'", "something other than a login"),
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


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "a b", "a\nb", "x" * 65, "$(id)"])
async def test_only_a_name_is_a_name(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who may write the file of logins may not choose any program of the disk by it."""
    (tmp_path / "x").write_text("#!/bin/sh\ntouch ran\n")
    assert await ask_helper(Helper(name, "quay.io"), {"PATH": str(tmp_path)}) is None
    assert "cannot be the name of a credential helper" in caplog.text


async def test_a_missing_helper_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Silence would look like a wrong password."""
    assert await ask_helper(Helper("gone", "quay.io"), {"PATH": str(tmp_path)}) is None
    assert "docker-credential-gone is not in PATH, but has the login for quay.io" in caplog.text


async def test_a_helper_sees_none_of_our_secrets(tmp_path: Path) -> None:
    """It is another's program: it gets what it needs to find its own files and to reach its cloud."""
    environment = write_helper(tmp_path, f"env > {tmp_path}/seen; echo '{_LOGIN}'")
    secrets = ("NIX_SIGNING_KEY", "NIXCACHE_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "LD_PRELOAD")
    passed = {"HOME": "/h", "AWS_PROFILE": "p", "XDG_RUNTIME_DIR": "/r", "https_proxy": "http://p:1"}
    await ask_helper(_HELPER, {**environment, **passed, **dict.fromkeys(secrets, "s")})
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert not set(secrets) & set(seen)
    assert passed.items() <= seen.items()

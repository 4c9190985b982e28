"""Which credentials go to which registry."""

import base64
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from nixcache_oci.clients.credentials import (
    Credentials,
    choose_credentials,
    is_loopback,
    load_credentials,
    may_receive,
)
from nixcache_oci.errors import UsageError

_GITHUB = {"GITHUB_TOKEN": "gh-secret", "GH_TOKEN": "other-secret"}


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _docker(**auths: object) -> str:
    return json.dumps({"auths": {key.replace("__", "."): value for key, value in auths.items()}})


@pytest.mark.parametrize(
    ("content", "username", "password"),
    [("a-token\n", "nixcache-oci", "a-token"), (" user:pass:word \n", "user", "pass:word")],
)
def test_a_token_file_comes_first(content: str, username: str, password: str) -> None:
    """Who names a token file means it, for whatever registry; a token may have a user or none."""
    found = choose_credentials("r.example", {"NIXCACHE_TOKEN_FILE": "/t", **_GITHUB}, content, None)
    assert found == Credentials(username, password, "NIXCACHE_TOKEN_FILE (/t)")


@pytest.mark.parametrize("host", ["r.example", "ghcr.io", "127.0.0.1:5000"])
def test_a_token_for_any_registry(host: str) -> None:
    """As a workflow hands it out, whose registry need not be GitHub's; a file comes first."""
    given = {"NIXCACHE_TOKEN": " user:pass:word\n", **_GITHUB}
    assert choose_credentials(host, given, None, None) == Credentials("user", "pass:word", "NIXCACHE_TOKEN")
    of_file = choose_credentials(host, {**given, "NIXCACHE_TOKEN_FILE": "/t"}, "token", None)
    assert of_file == Credentials("nixcache-oci", "token", "NIXCACHE_TOKEN_FILE (/t)")
    assert choose_credentials("r.example", {"NIXCACHE_TOKEN": " \n"}, None, None) is None
    with pytest.raises(UsageError, match=r"^NIXCACHE_TOKEN: it should hold one line"):
        choose_credentials(host, {"NIXCACHE_TOKEN": "one\ntwo"}, None, None)


@pytest.mark.parametrize("content", ["", " \n", "one\ntwo\n"])
def test_a_token_file_without_a_token_is_refused(content: str) -> None:
    """Going on anonymously would hide the mistake until a publish fails."""
    with pytest.raises(UsageError, match=r"NIXCACHE_TOKEN_FILE: /t "):
        choose_credentials("ghcr.io", {"NIXCACHE_TOKEN_FILE": "/t"}, content, None)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_token_file_that_cannot_be_read_is_refused(tmp_path: Path, kind: str) -> None:
    """The error names the variable and the file, and shows nothing of its content."""
    path = tmp_path / "token"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"NIXCACHE_TOKEN_FILE: .*token cannot be read: ") as raised:
        load_credentials("ghcr.io", {"NIXCACHE_TOKEN_FILE": str(path), "HOME": str(tmp_path)})
    assert "xff" not in str(raised.value)


@pytest.mark.parametrize(
    "host",
    [
        "ghcr.io",
        "GHCR.io",
        "ghcr.io:443",
        "containers.corp.ghe.com",
        "localhost:5000",
        "127.0.0.1",
        "[::1]:80",
    ],
)
def test_github_tokens_go_to_github(host: str) -> None:
    """GitHub's registries take GITHUB_TOKEN; the loopback ones are tests and local mirrors."""
    assert choose_credentials(host, _GITHUB, None, None) == Credentials(
        "nixcache-oci", "gh-secret", "GITHUB_TOKEN", is_ambient=True
    )


@pytest.mark.parametrize(
    "host",
    [
        "quay.io",
        "ghcr.io.evil.example",
        "notghcr.io",
        "evilghe.com",
        "ghcr.io:8443",
        "127.0.0.1.evil.example",
        "[2001:db8::1]",
    ],
)
def test_github_tokens_go_nowhere_else(host: str) -> None:
    """Every workflow has a GITHUB_TOKEN: offering it to a foreign registry would give the repository away."""
    assert choose_credentials(host, _GITHUB, None, None) is None


def test_the_second_variable_serves_where_the_first_is_empty() -> None:
    """An unset secret reaches a workflow as an empty variable."""
    found = choose_credentials("ghcr.io", {"GITHUB_TOKEN": " ", "GH_TOKEN": "t"}, None, None)
    assert found == Credentials("nixcache-oci", "t", "GH_TOKEN", is_ambient=True)


@pytest.mark.parametrize(
    ("host", "config", "expected"),
    [
        ("quay.io", _docker(quay__io={"auth": _encode("me:pw:x")}), ("me", "pw:x", False)),
        ("quay.io", _docker(**{"https://quay.io/v1/": {"auth": _encode("me:pw")}}), ("me", "pw", False)),
        ("quay.io", _docker(quay__io={"username": "me", "password": "pw"}), ("me", "pw", False)),
        ("127.0.0.1:5000", _docker(**{"127.0.0.1:5000": {"auth": _encode("me:pw")}}), ("me", "pw", False)),
        (
            "r.azurecr.io",
            _docker(r__azurecr__io={"auth": _encode("0:"), "identitytoken": "idt"}),
            ("0", "idt", True),
        ),
        (
            "registry-1.docker.io",
            _docker(**{"https://index.docker.io/v1/": {"auth": _encode("me:pw")}}),
            ("me", "pw", False),
        ),
        ("quay.io", _docker(ghcr__io={"auth": _encode("me:pw")}), None),
        ("quay.io:8443", _docker(quay__io={"auth": _encode("me:pw")}), None),
        ("quay.io", _docker(quay__io={}), None),
        ("quay.io", _docker(quay__io=[]), None),
        ("quay.io", "{}", None),
        ("quay.io", '{"auths": null}', None),
    ],
)
def test_docker_logins_are_found(host: str, config: str, expected: tuple[str, str, bool] | None) -> None:
    """``docker login`` is enough; a login for one registry is never shown to another."""
    found = choose_credentials(host, {}, None, config, "config.json")
    assert found == (expected and Credentials(*expected[:2], "config.json", expected[2]))


@pytest.mark.parametrize("config", ["", "{", "[]", "[" * 100_000, _docker(quay__io={"auth": "%%"})])
def test_a_broken_docker_config_is_a_warning(config: str, caplog: pytest.LogCaptureFixture) -> None:
    """It belongs to another program, and public caches need no login."""
    assert choose_credentials("quay.io", {}, None, config, "config.json") is None
    assert "config.json" in caplog.text


def test_a_missing_docker_config_is_fine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most machines have none."""
    assert load_credentials("quay.io", {"HOME": str(tmp_path)}) is None
    assert not caplog.records


def test_the_docker_config_is_found_by_variable_or_home(tmp_path: Path) -> None:
    """DOCKER_CONFIG names a folder, and wins over the home folder."""
    for folder, password in ((tmp_path / ".docker", "home"), (tmp_path / "other", "variable")):
        folder.mkdir()
        (folder / "config.json").write_text(_docker(quay__io={"auth": _encode(f"me:{password}")}))
    at_home = load_credentials("quay.io", {"HOME": str(tmp_path)})
    by_variable = load_credentials(
        "quay.io", {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "other")}
    )
    assert at_home is not None
    assert by_variable is not None
    assert (at_home.password, by_variable.password) == ("home", "variable")


@pytest.mark.parametrize("more", [{"credsStore": "desktop"}, {"credHelpers": {"quay.io": "helper"}}])
def test_credential_helpers_are_not_run(more: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    """One line says so and what to do; silence would look like a wrong password."""
    with caplog.at_level(logging.WARNING):
        assert choose_credentials("quay.io", {}, None, json.dumps({"auths": {"quay.io": {}}, **more})) is None
    assert len(caplog.records) == 1
    assert "NIXCACHE_TOKEN_FILE" in caplog.text


def test_secrets_are_not_shown() -> None:
    """Credentials end up in tracebacks and debug logs; their secret does not."""
    assert "gh-secret" not in repr(choose_credentials("ghcr.io", _GITHUB, None, None))


@pytest.mark.parametrize("host", ["::1", "", "[", ":5000", "localhost.example"])
def test_odd_hosts_are_not_this_machine(host: str) -> None:
    """What is not clearly loopback is treated as foreign."""
    assert not is_loopback(host)


@given(st.text(), st.text())
def test_any_docker_config_is_survived(host: str, text: str) -> None:
    """Whatever lies in the file, reading ends in credentials or none."""
    choose_credentials(host, {}, None, text)


@pytest.mark.parametrize(
    ("registry", "realm", "expected"),
    [
        ("https://ghcr.io", "https://ghcr.io/token", True),
        ("https://ghcr.io", "https://GHCR.io:443/token", True),
        ("https://ghcr.io", "http://ghcr.io/token", False),
        ("http://ghcr.io", "http://ghcr.io/token", False),
        ("https://ghcr.io", "https://ghcr.io.evil.example/token", False),
        ("https://ghcr.io", "https://evil.example/token", False),
        ("https://ghcr.io", "https://127.0.0.1/token", False),
        ("https://ghcr.io", "https://containers.corp.ghe.com/token", False),
        ("https://containers.corp.ghe.com", "https://containers.corp.ghe.com/token", True),
        ("https://containers.corp.ghe.com", "https://corp.ghe.com/token", True),
        ("https://containers.corp.ghe.com", "https://containers.other.ghe.com/token", False),
        ("https://containers.corp.ghe.com", "https://evilcorp.ghe.com/token", False),
        ("https://containers.corp.ghe.com", "https://ghcr.io/token", False),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/token", True),
        ("http://127.0.0.1:5000", "http://localhost:5001/token", True),
        ("http://[::1]:5000", "http://[::1]:5001/token", True),
        ("http://127.0.0.1:5000", "https://ghcr.io/token", True),
        ("http://127.0.0.1:5000", "http://ghcr.io/token", False),
        ("http://127.0.0.1:5000", "https://evil.example/token", False),
        ("http://127.0.0.1:5000", "http://evil.example/token", False),
        ("http://127.0.0.1:5000", "http://127.0.0.1.evil.example/token", False),
        ("http://127.0.0.1:5000", "http://10.0.0.1/token", False),
    ],
)
def test_github_tokens_are_shown_to_the_registry_and_to_github_only(
    registry: str, realm: str, *, expected: bool
) -> None:
    """They were not given for this registry, which may name any token service that it likes."""
    assert may_receive(URL(realm), URL(registry)) is expected

"""Which credentials go to which registry, of those that stand in variables."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from nixcache_oci.clients.auth_file import Helper, find_auth_files, search_auth_file
from nixcache_oci.clients.credentials import (
    Credentials,
    choose_variable,
    may_receive,
    parse_token,
)
from nixcache_oci.errors import UsageError
from nixcache_oci.oci.reference import is_loopback

_GITHUB = {"GITHUB_TOKEN": "gh-secret", "GH_TOKEN": "other-secret"}


@pytest.mark.parametrize(
    ("text", "username", "password"),
    [
        ("a-token\n", "nixcache-oci", "a-token"),
        (" user:pass:word \r\n", "user", "pass:word"),
        ("\ufeffa-token", "nixcache-oci", "a-token"),
        ("$oauthtoken:x", "$oauthtoken", "x"),
    ],
)
def test_a_token_may_have_a_user(text: str, username: str, password: str) -> None:
    """A token alone, or a user and a password, as editors of any kind save them."""
    assert parse_token(text, "t") == Credentials(username, password, "t")


@pytest.mark.parametrize("text", ["", " \n", "\ufeff", "one\ntwo\n", "a\x00b", "a\x1bb"])
def test_what_cannot_be_a_token_is_refused(text: str) -> None:
    """Going on anonymously would hide the mistake until a publish fails; the text itself is not shown."""
    with pytest.raises(UsageError, match=r"^here (is empty|should hold)") as raised:
        parse_token(text, "here")
    assert "one" not in str(raised.value).replace("one line", "")


@pytest.mark.parametrize("host", ["ghcr.io", "quay.io", "127.0.0.1:5000", "registry.example:5000"])
def test_our_own_variable_is_for_any_registry(host: str) -> None:
    """Who sets it means the registry that is configured: CI has a secret, and nowhere to keep a file."""
    found = choose_variable(host, {"NIXCACHE_TOKEN": "me:pw", **_GITHUB})
    assert found == Credentials("me", "pw", "NIXCACHE_TOKEN")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_variable_is_none(text: str) -> None:
    """An unset secret reaches a workflow as an empty variable."""
    assert choose_variable("quay.io", {"NIXCACHE_TOKEN": text}) is None
    found = choose_variable("ghcr.io", {"NIXCACHE_TOKEN": text, "GITHUB_TOKEN": text, "GH_TOKEN": "t"})
    assert found == Credentials("nixcache-oci", "t", "GH_TOKEN", is_ambient=True)


@pytest.mark.parametrize(
    "host",
    [
        *("ghcr.io", "GHCR.io", "ghcr.io:443", "containers.corp.ghe.com", "localhost:5000"),
        *("127.0.0.1", "[::1]:80"),
    ],
)
def test_github_tokens_go_to_github(host: str) -> None:
    """GitHub's registries take GITHUB_TOKEN; the loopback ones are tests and local mirrors."""
    assert choose_variable(host, _GITHUB) == Credentials(
        "nixcache-oci", "gh-secret", "GITHUB_TOKEN", is_ambient=True
    )


@pytest.mark.parametrize(
    "host",
    [
        *("quay.io", "ghcr.io.evil.example", "notghcr.io", "evilghe.com", "ghcr.io:8443"),
        *("127.0.0.1.evil.example", "[2001:db8::1]"),
    ],
)
def test_github_tokens_go_nowhere_else(host: str) -> None:
    """Every workflow has a GITHUB_TOKEN: offering it to a foreign registry would give the repository away."""
    assert choose_variable(host, _GITHUB) is None


def test_secrets_are_not_shown() -> None:
    """Credentials end up in tracebacks and debug logs; their secret does not."""
    assert "gh-secret" not in repr(choose_variable("ghcr.io", _GITHUB))


@pytest.mark.parametrize("host", ["::1", "", "[", ":5000", "localhost.example"])
def test_odd_hosts_are_not_this_machine(host: str) -> None:
    """What is not clearly loopback is treated as foreign."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("registry", "ours", "others"),
    [
        (
            "https://ghcr.io",
            "https://ghcr.io https://GHCR.io:443",
            "http://ghcr.io https://ghcr.io.evil.example https://127.0.0.1 https://containers.corp.ghe.com",
        ),
        ("http://ghcr.io", "", "http://ghcr.io"),
        (
            "https://containers.corp.ghe.com",
            "https://containers.corp.ghe.com https://corp.ghe.com",
            "https://containers.other.ghe.com https://evilcorp.ghe.com https://ghcr.io",
        ),
        (
            "http://127.0.0.1:5000",
            "http://127.0.0.1:5000 http://localhost:5001 https://ghcr.io",
            "http://ghcr.io https://evil.example http://127.0.0.1.evil.example http://10.0.0.1",
        ),
        ("http://[::1]:5000", "http://[::1]:5001", ""),
    ],
)
def test_github_tokens_are_shown_to_the_registry_and_to_github_only(
    registry: str, ours: str, others: str
) -> None:
    """They were not given for this registry, which may name any token service that it likes."""
    shown = [
        realm for realm in f"{ours} {others}".split() if may_receive(URL(f"{realm}/token"), URL(registry))
    ]
    assert shown == ours.split()


_REPOSITORY = "org/app/nix-cache"


def _auth(text: str) -> dict[str, object]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def _search(host: str, **sections: object) -> list[str]:
    """Tell what is found, in its order: passwords, and helpers as ``name<server``."""
    found = search_auth_file(json.dumps(sections), "f", host, _REPOSITORY)
    return [f"{one.name}<{one.server}" if isinstance(one, Helper) else one.password for one in found]


@pytest.mark.parametrize(
    ("host", "auths", "expected"),
    [
        ("quay.io", {"quay.io": _auth("me:pw:x")}, ("me", "pw:x", False)),
        ("quay.io", {"https://quay.io/v1/": _auth("me:pw")}, ("me", "pw", False)),
        ("quay.io", {"http://quay.io": _auth("me:pw")}, ("me", "pw", False)),
        ("quay.io", {"QUAY.io/": _auth("me:pw")}, ("me", "pw", False)),
        ("quay.io", {"quay.io": {"username": "me", "password": "pw"}}, ("me", "pw", False)),
        ("127.0.0.1:5000", {"127.0.0.1:5000": _auth("me:pw")}, ("me", "pw", False)),
        ("r.azurecr.io", {"r.azurecr.io": {**_auth("0:"), "identitytoken": "idt"}}, ("0", "idt", True)),
        ("registry-1.docker.io", {"https://index.docker.io/v1/": _auth("me:pw")}, ("me", "pw", False)),
        ("docker.io", {"index.docker.io/v1": _auth("me:pw")}, ("me", "pw", False)),
        ("quay.io", {"ghcr.io": _auth("me:pw")}, None),
        ("quay.io:8443", {"quay.io": _auth("me:pw")}, None),
        ("quay.io", {"quay.io.evil.example": _auth("me:pw")}, None),
        ("quay.io", {"quay.io": {}}, None),
        ("quay.io", {"quay.io": []}, None),
        ("quay.io", {}, None),
        ("quay.io", None, None),
    ],
)
def test_logins_are_found(host: str, auths: object, expected: tuple[str, str, bool] | None) -> None:
    """``docker login`` is enough; a login for one registry is never shown to another."""
    found = search_auth_file(json.dumps({"auths": auths}), "config.json", host, _REPOSITORY)
    assert found == ([Credentials(*expected[:2], "config.json", expected[2])] if expected else [])


def test_the_most_specific_entry_counts() -> None:
    """podman keeps a login for each organization: another's would be refused, or worse, accepted."""
    auths = {
        "quay.io": _auth("u:host"),
        "quay.io/or": _auth("u:part of a name"),
        "quay.io/org": _auth("u:org"),
        "quay.io/org/app": _auth("u:app"),
        "quay.io/org/app/nix-cache": _auth("u:all"),
        "quay.io/org/application": _auth("u:another"),
        "quay.io/other": _auth("u:other"),
    }
    assert _search("quay.io", auths=auths) == ["all", "app", "org", "host"]
    assert _search("quay.io", auths=dict(reversed(auths.items()))) == ["all", "app", "org", "host"]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"credsStore": "desktop"}, ["desktop<quay.io"]),
        ({"credsStore": "desktop", "auths": {"quay.io": {}}}, ["desktop<quay.io"]),
        ({"credHelpers": {"quay.io": "one"}, "credsStore": "all"}, ["one<quay.io", "all<quay.io"]),
        ({"credHelpers": {"ghcr.io": "one"}}, []),
        ({"credHelpers": {"quay.io": "one"}, "auths": {"quay.io": _auth("u:pw")}}, ["one<quay.io", "pw"]),
        ({"credHelpers": {"quay.io": "one"}, "auths": {"quay.io/org": _auth("u:pw")}}, ["pw", "one<quay.io"]),
        ({"credHelpers": {"quay.io": 1}, "credsStore": []}, []),
        ({"credHelpers": ["quay.io"], "credsStore": ""}, []),
    ],
)
def test_helpers_have_their_turn(sections: dict[str, object], expected: list[str]) -> None:
    """Of one place the helper before the file, which docker leaves empty; the store for all comes last."""
    assert _search("quay.io", **sections) == expected
    # Helpers know Docker Hub by the address that docker made up for it.
    assert _search("registry-1.docker.io", credsStore="x") == ["x<https://index.docker.io/v1/"]


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"auths": {"quay.io": {"auth": "%%"}}}'])
def test_a_broken_file_is_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It belongs to another program, and public caches need no login."""
    assert search_auth_file(text, "config.json", "quay.io", _REPOSITORY) == []
    assert "config.json" in caplog.text


def test_where_files_are_looked_for() -> None:
    """What a variable names comes first, then podman's of the session and of the user, then docker's."""
    variables = {
        "REGISTRY_AUTH_FILE": "/n/a.json",
        "DOCKER_CONFIG": "/d",
        "XDG_RUNTIME_DIR": "/r",
        "HOME": "/h",
    }
    assert [str(path) for path in find_auth_files(variables)] == [
        *("/n/a.json", "/d/config.json", "/r/containers/auth.json"),
        *("/h/.config/containers/auth.json", "/h/.docker/config.json"),
    ]
    assert find_auth_files({"XDG_CONFIG_HOME": "/c"}) == (Path("/c/containers/auth.json"),)
    assert find_auth_files({}) == ()


@given(st.text(), st.text(), st.text())
def test_any_file_is_survived(text: str, host: str, repository: str) -> None:
    """Whatever lies in the file, reading ends in candidates or none."""
    search_auth_file(text, "f", host, repository)

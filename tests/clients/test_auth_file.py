"""What docker's and podman's files of logins say of a repository."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.auth_file import Helper, find_auth_files, search_auth_file
from nixcache_oci.clients.credentials import Credentials

_REPOSITORY = "org/app/nix-cache"


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _auth(text: str) -> dict[str, object]:
    return {"auth": _encode(text)}


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


def test_docker_hub_has_a_name_of_its_own() -> None:
    """Helpers know it by the address that docker made up for it."""
    assert _search("registry-1.docker.io", credsStore="x") == ["x<https://index.docker.io/v1/"]


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"auths": {"quay.io": {"auth": "%%"}}}'])
def test_a_broken_file_is_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It belongs to another program, and public caches need no login."""
    assert search_auth_file(text, "config.json", "quay.io", _REPOSITORY) == []
    assert "config.json" in caplog.text


def test_where_files_are_looked_for() -> None:
    """What a variable names comes first, then podman's of the session and of the user, then docker's."""
    environment = {
        "REGISTRY_AUTH_FILE": "/named/auth.json",
        "DOCKER_CONFIG": "/docker",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "HOME": "/home/me",
    }
    assert [str(path) for path in find_auth_files(environment)] == [
        "/named/auth.json",
        "/docker/config.json",
        "/run/user/1/containers/auth.json",
        "/home/me/.config/containers/auth.json",
        "/home/me/.docker/config.json",
    ]
    assert find_auth_files({"XDG_CONFIG_HOME": "/c"}) == (Path("/c/containers/auth.json"),)
    assert find_auth_files({}) == ()


@given(st.text(), st.text(), st.text())
def test_any_file_is_survived(text: str, host: str, repository: str) -> None:
    """Whatever lies in the file, reading ends in candidates or none."""
    search_auth_file(text, "f", host, repository)

"""Which credentials go to which registry, of those that stand in variables."""

import pytest
from yarl import URL

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
    assert choose_variable(host, _GITHUB) == Credentials(
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
    assert choose_variable(host, _GITHUB) is None


def test_secrets_are_not_shown() -> None:
    """Credentials end up in tracebacks and debug logs; their secret does not."""
    assert "gh-secret" not in repr(choose_variable("ghcr.io", _GITHUB))


@pytest.mark.parametrize("host", ["::1", "", "[", ":5000", "localhost.example"])
def test_odd_hosts_are_not_this_machine(host: str) -> None:
    """What is not clearly loopback is treated as foreign."""
    assert not is_loopback(host)


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

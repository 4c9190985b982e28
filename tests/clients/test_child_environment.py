"""What the programs that are started get to know of our environment."""

import pytest

from nixcache_oci.clients.local_store.environment import child_environment, find_refused

HARMLESS = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_TIME", "TERM", "TMPDIR"),
    *("NIX_CONFIG", "NIX_PATH", "NIX_REMOTE", "NIX_SSL_CERT_FILE", "NIXPKGS_ALLOW_UNFREE"),
    *("XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "HTTPS_PROXY", "no_proxy", "ALL_PROXY"),
)
SECRET = (
    *(
        "NIX_SIGNING_KEY",
        "GITHUB_TOKEN",
        "GH_TOKEN",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "ACTIONS_RUNTIME_TOKEN",
    ),
    *("NIXCACHE_TOKEN_FILE", "NIXCACHE_SIGNING_KEY_FILE", "NIXCACHE_UPSTREAM", "DOCKER_CONFIG"),
    *("SOME_PASSWORD", "AWS_SECRET_ACCESS_KEY", "NIX_GITHUB_TOKEN", "NIX_SECRET", "SSH_AUTH_SOCK"),
    *("LD_PRELOAD", "PYTHONPATH", "BASH_ENV", "GIT_SSH_COMMAND", "PATHS", "HOMEBREW_GITHUB_API_TOKEN"),
)


def of(names: tuple[str, ...], **more: str) -> dict[str, str]:
    return {**dict.fromkeys(names, "value"), **more}


def test_only_what_is_known_to_be_harmless_passes() -> None:
    """A list of what passes, not of what does not: nobody can name every secret."""
    assert child_environment(of((*HARMLESS, *SECRET))) == of(HARMLESS)


def test_a_user_passes_more_on_purpose() -> None:
    """By name, whatever it is; but no setting hands out this program's own secrets."""
    names = "SSH_AUTH_SOCK AWS_SECRET_ACCESS_KEY NIX_SIGNING_KEY GITHUB_TOKEN UNSET"
    given = of((*SECRET, "PATH"), NIXCACHE_PASS_ENV=f" {names}\n NIXCACHE_PASS_ENV")
    assert child_environment(given).keys() == {"PATH", "SSH_AUTH_SOCK", "AWS_SECRET_ACCESS_KEY"}


@pytest.mark.parametrize("name", ["NIX_SIGNING_KEY", "GITHUB_TOKEN", "GH_TOKEN", "NIXCACHE_TOKEN_FILE"])
def test_what_cannot_be_passed_on_is_named(name: str) -> None:
    """So that the settings can refuse it, instead of leaving it out silently."""
    assert find_refused(["SSH_AUTH_SOCK", name]) == name
    assert find_refused(["SSH_AUTH_SOCK"]) is None

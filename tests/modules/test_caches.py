"""Several caches in the modules: the file that the proxy reads, keys that Nix trusts, and tokens."""

import argparse
from pathlib import Path

import pytest

from nixcache_oci.settings.cache_config import CacheConfig, cache_configs
from nixcache_oci.settings.values import Values
from tests.support.nix import NixSandbox
from tests.support.nix_modules import KEY, OTHER_KEY, USABLE, Evaluated, Modules, environment_of

pytestmark = pytest.mark.needs("nix-instantiate")

CACHES = {
    "b": {"repo": "owner/b", "publicKeys": [OTHER_KEY]},
    "a": {
        "repo": "team/tools",
        "registry": "registry.example:5000",
        "image": "cache",
        "publicKeys": [KEY],
        "tokenFile": "/run/secrets/a 100%",
    },
}


def read(nix: NixSandbox, evaluated: Evaluated, kind: str) -> tuple[CacheConfig, ...]:
    """Have the program read what the module says."""
    environment = environment_of(evaluated, kind)
    path = Path(environment["NIXCACHE_CACHES_FILE"])
    environment["NIXCACHE_CACHES_FILE"] = str(nix.physical(str(path)))
    return cache_configs(Values(environment, argparse.Namespace()))


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_the_program_reads_the_caches(modules: Modules, nix: NixSandbox, kind: str) -> None:
    """In the order of their names, after that of ``repo``; and each token only for its own."""
    evaluated = modules.evaluate(kind, **USABLE, caches=CACHES)
    assert evaluated.failed == []
    own, first, second = read(nix, evaluated, kind)
    assert own.prefix == "octocat/my-cache"
    assert (first.prefix, second.prefix) == ("registry.example:5000/team/tools/cache", "owner/b")
    assert [[str(key) for key in one.public_keys] for one in (own, first, second)] == [
        [KEY],
        [KEY],
        [OTHER_KEY],
    ]
    token = "/run/credentials/nixcache-proxy.service/token-a" if kind == "nixos" else "/run/secrets/a 100%"
    assert first.environment["NIXCACHE_TOKEN_FILE"] == token
    assert "NIXCACHE_TOKEN_FILE" not in second.environment
    if kind == "nixos":
        loaded = evaluated.service["serviceConfig"]["LoadCredential"]
        assert "token-a:/run/secrets/a 100%%" in loaded


def test_caches_need_no_repo(modules: Modules, nix: NixSandbox) -> None:
    """They are all there is then, and Nix trusts their keys."""
    evaluated = modules.evaluate(caches=CACHES)
    assert evaluated.failed == []
    assert [config.prefix for config in read(nix, evaluated, "nixos")] == [
        "registry.example:5000/team/tools/cache",
        "owner/b",
    ]
    assert evaluated.nix_settings["trusted-public-keys"][-2:] == [KEY, OTHER_KEY]


def test_one_cache_needs_no_file(modules: Modules) -> None:
    """The short form stays as it is."""
    assert "NIXCACHE_CACHES_FILE" not in environment_of(modules.evaluate(**USABLE), "nixos")


@pytest.mark.parametrize(
    ("caches", "message"),
    [
        ({"x": {"publicKeys": [KEY]}}, "caches.x: set repo"),
        ({"x": {"repo": "a/b"}}, "caches.x: Nix would refuse everything"),
        ({"x": {"repo": "a/b", "registry": "u:p@host", "publicKeys": [KEY]}}, "use its tokenFile"),
        ({"x": {"repo": "ghp_" + "x" * 20, "publicKeys": [KEY]}}, "use its tokenFile"),
        ({"x": {"repo": "a/b", "tokenFile": "/nix/store/x", "publicKeys": [KEY]}}, "is in the Nix store"),
        ({"x/y": {"repo": "a/b", "publicKeys": [KEY]}}, "a name has letters"),
        ({"x": {"repo": "a/b", "publicKeys": [KEY[:-44] + "C" * 43 + "="]}}, "two keys of one name"),
    ],
)
def test_what_cannot_be_meant_is_refused(modules: Modules, caches: dict[str, object], message: str) -> None:
    """Before anything is built; and no error says a token."""
    failed = "\n".join(modules.evaluate(**USABLE, caches=caches).failed)
    assert message in failed
    assert "ghp_" not in failed

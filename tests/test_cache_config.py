"""Which caches the proxy serves: NIXCACHE_REPO, and a TOML file."""

import argparse
from pathlib import Path

import pytest

from nixcache_oci.errors import UsageError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings.cache_config import MAX_CACHES_FILE_BYTES, MOST_CACHES, CacheConfig, cache_configs
from nixcache_oci.settings.values import Values

KEY = str(SecretKey.generate("a-1").public_key)
OTHER = str(SecretKey.generate("b-1").public_key)


def read(folder: Path, text: str | None, **environment: str) -> tuple[CacheConfig, ...]:
    path = folder / "caches.toml"
    if text is not None:
        path.write_text(text)
        environment["NIXCACHE_CACHES_FILE"] = str(path)
    return cache_configs(Values(environment, argparse.Namespace()))


def test_several_repositories_are_several_caches_in_order(tmp_path: Path) -> None:
    """They share registry, keys and token; one that is named twice counts once."""
    configs = read(tmp_path, None, NIXCACHE_REPO="owner/b Owner/a owner/b", NIXCACHE_PUBLIC_KEYS=KEY)
    assert [config.prefix for config in configs] == ["owner/b", "owner/a"]
    assert [str(key) for config in configs for key in config.public_keys] == [KEY, KEY]


def test_a_file_adds_caches_with_keys_and_tokens_of_their_own(tmp_path: Path) -> None:
    """NIXCACHE_TOKEN is for NIXCACHE_REPO alone, and a token file beside the caches' one is found there."""
    [first, second, third] = read(
        tmp_path,
        f"""
        [[cache]]
        repo = "team/tools"
        registry = "registry.example:5000"
        public-keys = ["{OTHER}"]
        token-file = "token"
        [[cache]]
        repo = "owner/c"
        image = "-"
        """,
        NIXCACHE_REPO="owner/a",
        NIXCACHE_PUBLIC_KEYS=KEY,
        NIXCACHE_TOKEN="first",
        GITHUB_TOKEN="ambient",
    )
    assert [first.prefix, second.prefix] == ["owner/a", "registry.example:5000/team/tools/nix-cache"]
    assert third.prefix == "ghcr.io/owner/c"
    assert [[str(key) for key in one.public_keys] for one in (first, second, third)] == [[KEY], [OTHER], []]
    assert first.environment["NIXCACHE_TOKEN"] == "first"
    assert second.environment == {
        "GITHUB_TOKEN": "ambient",
        "NIXCACHE_CACHES_FILE": str(tmp_path / "caches.toml"),
        "NIXCACHE_PUBLIC_KEYS": KEY,
        "NIXCACHE_REPO": "owner/a",
        "NIXCACHE_TOKEN_FILE": str(tmp_path / "token"),
    }
    assert not {"NIXCACHE_TOKEN", "NIXCACHE_TOKEN_FILE"} & third.environment.keys()
    assert "first" not in repr(first)


def test_a_file_alone_needs_no_embedded_cache(tmp_path: Path) -> None:
    """Only without any setting is there one; an OCI layout may be among the others."""
    [config, layout] = read(tmp_path, '[[cache]]\nrepo = "a/b"\n[[cache]]\nregistry = "oci:/srv/x"\n')
    assert config.prefix == "a/b"
    assert layout.location == Path("/srv/x")
    assert str(layout.prefix).startswith("_layout/")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[[cache]", "not TOML"),
        ("[cache]\nrepo = 'a/b'", "expected tables [[cache]]"),
        ("caches = 1", "expected tables [[cache]]"),
        ("[[cache]]\n", "cache 1: repo: expected owner/name"),
        ("[[cache]]\nrepo = 1", "cache 1: repo: expected a text"),
        ("[[cache]]\nrepo = 'a/..'", "cache 1: expected owner/name"),
        ("[[cache]]\nrepo = 'a/b'\ntoken = 'x'", "cache 1: 'token' is none of"),
        ("[[cache]]\nrepo = 'a/b'\npublic-keys = 'x'", "cache 1: public-keys: expected a list"),
        ("[[cache]]\nrepo = 'a/b'\npublic-keys = ['x']", "cache 1: expected public keys"),
        ("[[cache]]\nrepo = 'a/b'\nuploads = 1", "cache 1: uploads: expected true or false"),
        ("[[cache]]\nrepo = 'a/b'\nregistry = 'u:p@h'", "cache 1: expected host[:port]"),
        ("[[cache]]\nrepo = 'a/b'\n[[cache]]\nrepo = 'A/b'", "ghcr.io/a/b/nix-cache is configured twice"),
        ("[[cache]]\nrepo='a/b'\n[[cache]]\nrepo='a/b'\nregistry='[::1]:5000'", "needs a host name"),
        ("#" * (MAX_CACHES_FILE_BYTES + 1), "longer than"),
        ("".join(f"[[cache]]\nrepo='a/b{n}'\n" for n in range(MOST_CACHES + 1)), "over the limit"),
    ],
)
def test_what_cannot_be_meant_stops_the_start(tmp_path: Path, text: str, error: str) -> None:
    """One line that says where and what."""
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)

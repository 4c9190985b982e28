"""Prefixes: which repository a path names."""

import re
from pathlib import Path

import pytest

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.prefix import (
    PREFIX,
    RepositoryPattern,
    parse_prefix,
    prefix_of,
    spellings,
    url_prefix,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("owner/name", "ghcr.io/owner/name/nix-cache"),
        ("Owner/My.Cache", "ghcr.io/owner/my.cache/nix-cache"),
        ("owner/.github", "ghcr.io/owner/github.x"),
        ("ghcr.io/owner/name/nix-cache", "ghcr.io/owner/name/nix-cache"),
        ("registry.example/a/b/c", "registry.example/a/b/c"),
        ("registry:5000/a", "registry:5000/a"),
        ("_/registry:5000/a", "registry:5000/a"),
        ("_/registry/a/b", "registry/a/b"),
        ("localhost/a", "localhost/a"),
        ("docker.io/a/b", "registry-1.docker.io/a/b"),
    ],
)
def test_a_prefix_names_a_repository(text: str, name: str) -> None:
    """In any case; a first part with a dot or a colon is a host."""
    assert re.fullmatch(PREFIX, text)
    assert str(parse_prefix(text)).startswith(name)


@pytest.mark.parametrize(
    "text",
    [
        "owner",
        "owner/..",
        "owner/.",
        "../name",
        "owner/name/more",
        "owner/a:b",
        "owner//name",
        "owner/" + "n" * 300,
        "nar/x",
        "Upstream/x",
        "host.example/a/../b",
        "host.example/.a",
        "host.example",
        "host.example:0/a",
        "host.example:99999/a",
        "user@host.example/a",
        "_/..",
        "_layout/0123456789abcdef",
        "owner/na%2ee",
        "owner/na\0me",
        "öwner/name",
        "",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """Before anybody is asked."""
    with pytest.raises(FormatError):
        parse_prefix(text)


@pytest.mark.parametrize(
    ("location", "prefix"),
    [
        (RegistryReference.of("ghcr.io", "owner/name", "nix-cache"), "owner/name"),
        (RegistryReference.of("ghcr.io", "owner/name", "other"), "ghcr.io/owner/name/other"),
        (RegistryReference.of("ghcr.io", "nar/name", "nix-cache"), "ghcr.io/nar/name/nix-cache"),
        (RegistryReference.of("ghcr.io", f"owner/a.x{'0' * 16}", "nix-cache"), None),
        (RegistryReference.of("registry:5000", "a", ""), "registry:5000/a"),
        (RegistryReference.of("http://registry", "a", "b"), "_/registry/a/b"),
        (RegistryReference.of("[::1]:5000", "a", "b"), None),
    ],
)
def test_the_shortest_prefix_leads_back(location: RegistryReference, prefix: str | None) -> None:
    """Each way to write it is one of its spellings."""
    found = prefix_of(location)
    if prefix is None:
        assert found is None or found.startswith("ghcr.io/")
    else:
        assert found == prefix
    if found is not None:
        assert str(parse_prefix(found)) == str(location)
        assert {found, url_prefix(found)} <= spellings(found)
        assert ":" not in url_prefix(found).partition("/")[0]


def test_a_layout_has_a_prefix_that_no_repository_has() -> None:
    """Beside other caches, its NARs need one."""
    prefix = prefix_of(Path("/srv/cache"))
    assert prefix is not None
    assert re.fullmatch(PREFIX, prefix)
    assert spellings(prefix) == {prefix}


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("ghcr.io/*", "ghcr.io/a/b/c", True),
        ("GHCR.io/*", "ghcr.io/a", True),
        ("ghcr.io/*", "ghcr.io.evil.example/a", False),
        ("ghcr.io/owner/*", "ghcr.io/owner/b", True),
        ("ghcr.io/owner/*", "ghcr.io/owners/b", False),
        ("*.example/*", "a.example/b", True),
        ("*.example/*", "evil.org/x.example/b", False),
        ("*/*", "registry:5000/a/b", True),
        ("registry:5000/*", "registry:5001/a", False),
        ("ghcr.io/a", "ghcr.io/ab", False),
    ],
)
def test_a_star_stands_for_anything_in_its_part(pattern: str, name: str, allowed: bool) -> None:
    """A host is never matched by a part of a repository's name."""
    host, _, repository = name.partition("/")
    parsed = RepositoryPattern.parse(pattern)
    assert parsed.allows(RegistryReference.of(host, repository, "")) is allowed


@pytest.mark.parametrize("text", ["ghcr.io", "ghcr.io/", "https://x/*", "/*", "a b/*", "a:*:1/*", "ü/*"])
def test_a_pattern_has_a_host_and_a_repository(text: str) -> None:
    """Anything else might allow more than is meant."""
    with pytest.raises(FormatError, match="expected host/repository"):
        RepositoryPattern.parse(text)

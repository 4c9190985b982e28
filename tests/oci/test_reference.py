"""What users write into NIXCACHE_REGISTRY, NIXCACHE_REPO and NIXCACHE_IMAGE."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import (
    RegistryReference,
    fit_repository,
    is_repository,
    is_tag,
    parse_tag_or_digest,
)

_DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("registry", "base_url"),
    [
        *(
            (text, f"http://{text}")
            for text in ("localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.10")
        ),
        *((text, f"http://{text}") for text in ("[::1]:5000", "[::1]")),
        *((text, f"https://{text}") for text in ("ghcr.io", "registry.example:5000", "10.0.0.1:5000")),
        *((text, f"https://{text}") for text in ("localhost.example", "127.0.0.1.example")),
        *((text, text) for text in ("https://ghcr.io", "http://registry.example:5000", "https://localhost")),
        *(("https://127.0.0.1:5000", "https://127.0.0.1:5000"), ("https://ghcr.io/", "https://ghcr.io")),
        *(("GHCR.io", "https://ghcr.io"), ("HTTP://registry.example", "http://registry.example")),
        *(("LocalHost:5000", "http://localhost:5000"), ("[2001:DB8::1]:5000", "https://[2001:db8::1]:5000")),
    ],
)
def test_registry(registry: str, base_url: str) -> None:
    """Only loopback hosts speak plain HTTP unasked: a token must not cross a network in the clear."""
    reference = RegistryReference.of(registry, "owner/name", "nix-cache")
    assert reference.base_url == base_url
    assert str(reference) == base_url.partition("://")[2] + "/owner/name/nix-cache"


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        *(("", "expected host or host:port"), ("ghcr.io/owner", "without a path")),
        *(("https://ghcr.io/owner/", "without a path"), ("ghcr.io//", "without a path")),
        *(("ftp://ghcr.io", "ftp:// is not supported"), ("://ghcr.io", "is not supported")),
        *(("oci:/srv/cache", "without a path"), ("ghcr.io?x", "expected host")),
        *(("ghcr.io#x", "expected host"), ("ghcr.io ", "expected host")),
        *(("ghcr.io\n", "expected host"), ("gh\u0441r.io", "expected host")),
        *(("ghcr.io:", "expected host"), ("ghcr.io:http", "expected host")),
        *(("ghcr.io:0", "between 1 and 65535"), ("ghcr.io:65536", "between 1 and 65535")),
        *(("ghcr..io", "not the name of a host"), (".ghcr.io", "not the name of a host")),
        *(("-ghcr.io", "not the name of a host"), ("a." * 127 + "io", "not the name of a host")),
        *(("::1", "needs brackets"), ("[::1", "expected host"), ("[::g]", "expected host")),
        ("[1::2::3]", "At most one"),
    ],
)
def test_wrong_registry(registry: str, message: str) -> None:
    """One clear line says what is wrong with it."""
    with pytest.raises(FormatError, match=rf"\Aregistry [^\n]*{message}[^\n]*\Z"):
        RegistryReference.of(registry, "owner/name", "nix-cache")


def test_made_by_hand() -> None:
    """A reference is valid however it was made; a password in the address is not repeated in logs."""
    with pytest.raises(FormatError, match="registry"):
        RegistryReference("GHCR.IO", plain_http=False, repository="a/b")
    with pytest.raises(FormatError, match="repository"):
        RegistryReference("ghcr.io", plain_http=False, repository="A/b")
    with pytest.raises(FormatError, match="user and password") as caught:
        RegistryReference.of("https://user:secret@ghcr.io", "owner/name", "nix-cache")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("repo", "image", "repository"),
    [
        ("owner/name", "nix-cache", "owner/name/nix-cache"),
        ("Owner/Name.js", "Nix-Cache", "owner/name.js/nix-cache"),
        ("my-org/a__b_c-d--e.f", "x", "my-org/a__b_c-d--e.f/x"),
        *(("group/sub/name", "x", "group/sub/name/x"), ("", "nix-cache", "nix-cache")),
    ],
)
def test_repository(repo: str, image: str, repository: str) -> None:
    """GitHub's names may have capitals, registries' names may not."""
    assert RegistryReference.of("ghcr.io", repo, image).repository == repository


@pytest.mark.parametrize(
    ("repo", "image"),
    [
        *(("", ""), ("owner/.github", "x"), ("owner/a..b", "x"), ("owner/a___b", "x")),
        *(("owner/-a", "x"), ("owner/a-", "x"), ("/name", "x"), ("owner/", "x")),
        *(("owner//name", "x"), ("owner/name", "x/"), ("owner/name", "x:tag"), ("owner/na me", "x")),
        *(("owner/../name", "x"), ("https://github.com/owner/name", "x"), ("owner/name\n", "x")),
        *(("owner/n\u00e4me", "x"), ("o/" + "n" * 252, "x"), ("o" + "-" * 5000, "x")),
    ],
)
def test_wrong_repository(repo: str, image: str) -> None:
    """A name that registries refuse is refused here, before any request."""
    with pytest.raises(FormatError, match=r"\Arepository [^\n]*: registries take lower-case"):
        RegistryReference.of("ghcr.io", repo, image)


@given(st.text(max_size=30), st.text(max_size=10), st.text(max_size=10))
def test_any_text(registry: str, repo: str, image: str) -> None:
    """Every reference that can be made is one that registries take, whatever the input."""
    try:
        reference = RegistryReference.of(registry, repo, image)
    except FormatError:
        return
    assert is_repository(reference.repository)
    assert "/" not in reference.host
    assert RegistryReference.of(reference.base_url, reference.repository, "") == reference


def test_tag_or_digest() -> None:
    """Tags are what the specification says, and never look like a digest; what is neither is refused."""
    good = ["a", "_", "A1._-", "cache-index", "segment-20261121T031500Z-" + "ab" * 32, "x" * 128]
    bad = ["", ".a", "-a", "a/b", "a:b", "a b", "a\n", "x" * 129, "\u00e4"]
    wrong_digests = [_DIGEST.upper(), _DIGEST[:-1], _DIGEST + "\n", "sha512:" + "ab" * 64, "../" + _DIGEST]
    assert [tag for tag in good + bad if is_tag(tag)] == good
    assert [parse_tag_or_digest(tag) for tag in good] == good
    assert parse_tag_or_digest(_DIGEST) == Digest.parse(_DIGEST)
    for text in bad + wrong_digests:
        with pytest.raises(FormatError, match=r"\A(tag|digest)"):
            parse_tag_or_digest(text)


_NAMES = st.from_regex(r"\A[A-Za-z0-9._-]{1,40}\Z")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", "owner/name"),
        ("Owner/My.Name", "owner/my.name"),
        ("a/b_c/d--e", "a/b_c/d--e"),
        ("owner/.github", "owner/github.xbdcc6a2a85f645f6"),
        ("owner/-", "owner/repository.x3973e022e93220f9"),
    ],
)
def test_what_registries_take_keeps_its_name(name: str, expected: str) -> None:
    """A cache is found again by any version of this program: what these give is never changed."""
    assert fit_repository(name) == expected


@given(_NAMES)
@example(".github")
@example("name-")
@example("_x")
@example("...")
def test_any_name_becomes_one_that_registries_take(name: str) -> None:
    """Whatever GitHub lets a repository be called, by the rules of the strictest registries."""
    fitted = fit_repository(name)
    assert is_repository(fitted)
    if fitted != name.lower():
        assert not re.search(r"[._-]{2}", fitted)


@given(st.lists(_NAMES, min_size=2, max_size=2, unique_by=str.lower))
@example([".github", "github"])
@example([".github", "github.xbdcc6a2a85f645f6"])
@example(["name-", "name_"])
@example(["a.-b", "a-.b"])
def test_no_two_repositories_share_a_place(names: list[str]) -> None:
    """Two repositories of one owner must never write into one cache, whatever they are called."""
    assert fit_repository(names[0]) != fit_repository(names[1])


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_answers_under_another_name(host: str) -> None:
    """What people and docker call it is no registry."""
    assert RegistryReference.of(host, "owner", "name").base_url == "https://registry-1.docker.io"

"""Addresses of upstreams and NARs: tables, and a property for paths that try to escape."""

import posixpath
import re
from dataclasses import replace
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.upstream.address import (
    NarMode,
    UrlSigner,
    nar_url,
    parse_upstream,
    rewrite,
)
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.upstream_server import narinfo_text

PLAIN = parse_upstream("https://cache.example.org/some/base")


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("https://cache.nixos.org", "https://cache.nixos.org/"),
        ("HTTPS://Cache.NixOS.org:443/", "https://cache.nixos.org/"),
        ("http://127.0.0.1:8080/a/b//", "http://127.0.0.1:8080/a/b/"),
        ("http://[::1]:81", "http://[::1]:81/"),
        ("https://user:p%40ss@h.example/x", "https://h.example/x/"),
    ],
)
def test_base_urls_are_normalised(text: str, base: str) -> None:
    """One spelling for each base URL, since its hash is part of URLs that clients keep for a month."""
    upstream = parse_upstream(text)
    assert str(upstream) == base
    assert upstream.key == parse_upstream(base).key
    assert re.fullmatch("[0-9a-f]{16}", upstream.key)


@pytest.mark.parametrize(
    "text",
    [
        *("", "cache.example.org", "ftp://u:hunter2@h/", "file:///nix", "https://", "https:///x"),
        *("https://u:hunter2@h/?priority=10", "https://u:hunter2@h/?", "https://u:hunter2@h/#x"),
        *("https://u:hunter2@h:99999/", "https://u:hunter2@h/a b", "https://u:hunter2@h\\x/"),
        *("https://u:hunter2@[::1/", "https://u:hunter2@h/\n"),
    ],
)
def test_other_text_is_refused_without_showing_credentials(text: str) -> None:
    """A wrong setting stops the start with a line that may stand in a log."""
    with pytest.raises(UsageError) as caught:
        parse_upstream(text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_are_sent_but_never_shown() -> None:
    """User and password do not reach logs, the status page or the key."""
    upstream = parse_upstream("https://user:p%40ss@cache.example.org/some/base")
    assert upstream.authorization == "Basic dXNlcjpwQHNz"
    assert upstream.key == PLAIN.key
    for shown in (repr(upstream), str(upstream)):
        assert "p%40ss" not in shown
        assert "user" not in shown
        assert "Basic" not in shown


ESCAPES = [
    *("", "/etc/passwd", "//host/x", "..", "nar/../../x", "nar/./x", "nar//x", "nar/"),
    *("nar/%2e%2e/x", "nar/.%2E/x", "nar/%252e%252e/x", "nar/%25252e./x", "nar/..%2fx"),
    *("nar%2Fx", "nar/%252Fx", "nar\\x", "nar/%5c..%5cx", "nar/%255Cx", "nar/x%00.nar"),
    *("nar/x%2500.nar", "nar/x%0d%0aHost:%20x", "nar/x\r\nHost: x", "nar/x y", "nar/x%"),
    *("nar/x%zz", "nar/x#y", "nar/x?y", "nar/ä", "nar/%25252525252525252e"),
]


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_that_may_leave_the_base_are_refused(path: str) -> None:
    """Whatever some server makes of an odd path, it stays below the base URL."""
    with pytest.raises(FormatError):
        nar_url(PLAIN, path)


@pytest.mark.parametrize("query", ["a b", "a#b", "a\r\nb", "ä", "%zz"])
def test_queries_that_break_the_request_are_refused(query: str) -> None:
    """A query goes on the wire as it is, so it holds only what may stand there."""
    with pytest.raises(FormatError):
        nar_url(PLAIN, "nar/x", query)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("nar/abc.nar.zst", ""),
        ("nar/abc.nar", "hash=0123"),
        ("nar/a%2Bb%3F.nar", "sig=a%2Bb%3D/c?d"),
        ("a..b/...", ""),
        ("100%25", ""),
    ],
)
def test_honest_paths_arrive_as_they_are(path: str, query: str) -> None:
    """Nothing is decoded or encoded again on the way."""
    expected = f"https://cache.example.org/some/base/{path}" + (f"?{query}" if query else "")
    assert str(nar_url(PLAIN, path, query)) == expected


PIECES = st.sampled_from(
    ["..", ".", "/", "\\", "%2e", "%2F", "%5c", "%25", "%00", "nar", "a", "~", ";", ":", "%"]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.integers(min_value=0, max_value=3))
def test_no_accepted_path_escapes_under_any_decoding(path: str, encodings: int) -> None:
    """However often a server decodes, and whatever it takes for a slash, the path stays below the base."""
    for _ in range(encodings):
        path = quote(path, safe="/%")
    try:
        url = nar_url(PLAIN, path)
    except FormatError:
        return
    seen = url.raw_path
    for _ in range(8):
        assert "\0" not in seen
        assert posixpath.normpath(seen.replace("\\", "/")) == seen
        assert seen.startswith("/some/base/")
        seen = unquote(seen)


KEY = PLAIN.key
OWN = "https://cache.example.org/some/base"
SIGNER = UrlSigner(bytes(32))


def signed(path: str, query: str = "") -> str:
    """Give the URL that our clients follow."""
    return f"upstream/{KEY}/{SIGNER.sign(KEY, path, query)}{'?' if query else ''}{query}"


@pytest.mark.parametrize(
    ("url", "streamed", "direct"),
    [
        ("nar/x.nar.zst", signed("nar/x.nar.zst"), f"{OWN}/nar/x.nar.zst"),
        ("nar/x.nar?hash=1", signed("nar/x.nar", "hash=1"), f"{OWN}/nar/x.nar?hash=1"),
        (f"{OWN}/nar/x", signed("nar/x"), f"{OWN}/nar/x"),
        (f"{OWN}/nar/x?a=%2B", signed("nar/x", "a=%2B"), f"{OWN}/nar/x?a=%2B"),
        ("https://cache.example.org:443/some/base/x", signed("x"), f"{OWN}/x"),
        ("https://cache.example.org/other/x", None, None),
        ("https://cache.example.org:444/some/base/x", None, None),
        ("http://cache.example.org/some/base/x", None, None),
        ("https://cdn.example.org/x?sig=%2B", None, None),
    ],
)
def test_nar_urls_are_rewritten(url: str, streamed: str | None, direct: str | None) -> None:
    """What lies below the base is led through here or named in full; what lies elsewhere stays."""
    narinfo = NarInfo.parse(narinfo_text(url=url).encode())
    assert rewrite(narinfo, PLAIN, NarMode.STREAM, SIGNER).url == (streamed or url)
    assert rewrite(narinfo, PLAIN, NarMode.DIRECT, SIGNER).url == (direct or url)


def test_what_is_rewritten_is_a_narinfo_again() -> None:
    """Only the URL changes. With credentials all is streamed: the client would stand before a closed door."""
    narinfo = NarInfo.parse(narinfo_text().encode())
    for mode in NarMode:
        rewritten = rewrite(narinfo, PLAIN, mode, SIGNER)
        assert NarInfo.parse(rewritten.render().encode()) == rewritten
        assert replace(rewritten, url=narinfo.url) == narinfo
    private = parse_upstream(OWN.replace("https://", "https://user:secret@"))
    assert rewrite(narinfo, private, NarMode.DIRECT, SIGNER).url == signed("nar/hello.nar.zst")


@pytest.mark.parametrize(
    "url", ["nar/../x", "nar/%2e%2e/x", f"{OWN}/nar/../x", f"{OWN}/", "file:///etc/shadow"]
)
@pytest.mark.parametrize("mode", NarMode)
def test_urls_that_nobody_should_follow_are_refused(url: str, mode: NarMode) -> None:
    """A hostile narinfo is not passed on."""
    with pytest.raises(FormatError):
        rewrite(NarInfo.parse(narinfo_text(url=url).encode()), PLAIN, mode, SIGNER)

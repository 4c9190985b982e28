"""Which HTTP proxy is on the way to a URL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from nixcache_oci.clients.http.forward_proxy import check_proxies, find_proxy, is_excepted
from nixcache_oci.errors import UsageError

_HTTP = "http://cache.example/"
_HTTPS = "https://cache.example/"


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, _HTTP, None),
        ({"http_proxy": "http://p:1"}, _HTTP, "http://p:1"),
        ({"http_proxy": "http://p:1"}, _HTTPS, None),
        ({"https_proxy": "http://p:1"}, _HTTPS, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, _HTTPS, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, _HTTP, "http://p:1"),
        ({"http_proxy": "http://low:1", "HTTP_PROXY": "http://up:1"}, _HTTP, "http://low:1"),
        ({"all_proxy": "http://p:1"}, _HTTP, "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, _HTTPS, "http://p:1"),
        ({"all_proxy": "http://all:1", "HTTPS_PROXY": "http://one:1"}, _HTTPS, "http://one:1"),
        ({"https_proxy": "", "all_proxy": "http://all:1"}, _HTTPS, "http://all:1"),
        ({"http_proxy": "p:8080"}, _HTTP, "http://p:8080"),
        ({"http_proxy": "p"}, _HTTP, "http://p:1080"),
        ({"http_proxy": "http://p/"}, _HTTP, "http://p:1080"),
        ({"http_proxy": "http://p:80/x?y"}, _HTTP, "http://p:80"),
        ({"http_proxy": "https://p"}, _HTTP, "https://p:443"),
        ({"http_proxy": "HTTP://[::1]:3128"}, _HTTP, "http://[::1]:3128"),
    ],
)
def test_the_environments_proxy_is_found_as_curl_finds_it(
    environment: dict[str, str], url: str, expected: str | None
) -> None:
    """Nix reads these variables by curl: both have to take the same way to the same host."""
    found = find_proxy(URL(url), environment)
    assert (str(found.url) if found else None) == (str(URL(expected)) if expected else None)


def test_a_proxys_credentials_are_apart_from_its_address() -> None:
    """They go into a header of their own, and into no message."""
    found = find_proxy(URL(_HTTP), {"http_proxy": "http://us%40er:p%3Aw@p:1"})
    assert found is not None
    assert (str(found.url), found.authorization) == ("http://p:1", "Basic dXNAZXI6cDp3")
    assert "dXNA" not in repr(found)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "socks4a", "socks", "SOCKS5", "ftp"])
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_another_kind_of_proxy_is_refused(scheme: str, variable: str) -> None:
    """Neither is it passed by, nor is HTTP spoken to it; its password is not shown."""
    with pytest.raises(
        UsageError, match=f"^{variable} names a proxy that speaks {scheme.lower()}, "
    ) as raised:
        find_proxy(URL(_HTTPS), {variable: f"{scheme}://user:secret@p:1"})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("text", ["http://", "http://[", "http://p:x", "http://u:secret@", "::::"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """One line names the variable, and shows nothing of a text that may hold a password."""
    with pytest.raises(UsageError, match=r"^http_proxy is not a proxy's address") as raised:
        find_proxy(URL(_HTTP), {"http_proxy": text})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:5000", "http://localhost", "http://[::1]", "http://a.localhost", "http://127.9.9.9"],
)
@pytest.mark.parametrize("proxy", ["http://p:1", "socks5://p:1"])
def test_this_machine_is_never_reached_by_a_proxy(url: str, proxy: str) -> None:
    """A proxy elsewhere could not reach it, and would see what is meant for this machine alone."""
    assert find_proxy(URL(url), {"http_proxy": proxy, "all_proxy": proxy}) is None


def test_only_the_way_that_is_taken_counts() -> None:
    """A proxy of another kind is no trouble where ``no_proxy`` or another variable leads past it."""
    socks = "socks5://p:1"
    check_proxies([URL(_HTTPS)], {"all_proxy": socks, "no_proxy": ".example"})
    check_proxies([URL(_HTTPS)], {"all_proxy": socks, "https_proxy": "http://p:1"})
    check_proxies([URL(_HTTPS)], {"http_proxy": socks})
    with pytest.raises(UsageError, match="all_proxy"):
        check_proxies([URL(_HTTPS), URL(_HTTP)], {"all_proxy": socks, "https_proxy": "http://p:1"})


# For each host: what names it, and what does not; parts by "|".
NO_PROXY = {
    "cache.example": (
        (
            "*|example|.example|cache.example|.cache.example|CACHE.Example|cache.example.|cache.example:443|"
            ".example:443|other, cache.example| other\tcache.example |other,,cache.example,"
        ),
        "he.example|cache|a.cache.example||.|cache.example:8443|10.0.0.0/8",
    ),
    "CACHE.example": ("cache.example", ""),
    "cache.example.": ("cache.example", ""),
    "10.1.2.3": (
        "*|10.1.2.3|10.1.2.3:443|10.0.0.0/8|10.1.2.4/24",
        "10.1.2.3:80|10.1.3.0/24|2.3|.3|10.0.0.0/99",
    ),
    "fd00::1": ("fd00::1|[fd00::1]|[fd00::1]:443|fd00:0::0:1|fd00::/8", "fe80::/10"),
}


@pytest.mark.parametrize("host", NO_PROXY)
def test_no_proxy_is_read_as_curl_reads_it(host: str) -> None:
    """Names cover what is below them, with a leading dot or without; addresses and networks count as such."""
    those, others = (text.split("|") for text in NO_PROXY[host])
    assert [text for text in those + others if is_excepted(host, 443, text)] == those


@given(st.text(), st.text())
def test_any_text_is_survived(host: str, no_proxy: str) -> None:
    """Whatever the variable holds, it names the host or not."""
    is_excepted(host, 443, no_proxy)

"""Redirects of upstreams: where they may lead, and what goes with them."""

import pytest
from aiohttp import web
from yarl import URL

from nixcache_oci.clients.upstream.rules import next_url
from nixcache_oci.errors import UpstreamError
from tests.support.upstream_server import (
    HASH_PART,
    Asked,
    answering,
    asking,
    narinfo_text,
    refusing,
    saying,
    serve,
    talk,
)

# Both transports hold these rules.
pytestmark = pytest.mark.usefixtures("_transport")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_origin_is_followed_without_credentials(status: int) -> None:
    """Credentials are for the upstream's own origin, whatever it answers."""
    first: list[Asked] = []
    then: list[Asked] = []
    async with serve(answering(text=narinfo_text(), asked=then)) as storage:
        moved = answering(status=status, headers={"Location": f"{storage}/signed?x=%2B"}, asked=first)
        async with serve(moved) as url, asking(url.replace("//", "//user:pass@")) as upstreams:
            assert await upstreams.find(HASH_PART) is not None
    assert [one.headers.get("Authorization") for one in first + then] == ["Basic dXNlcjpwYXNz", None]


@pytest.mark.parametrize(
    ("current", "location", "target"),
    [
        ("https://a/b/c?d", "e?f=%2B", "https://a/b/e?f=%2B"),
        *(("https://a/b", "//c/d", "https://c/d"), ("http://a/b", "https://c/d#e", "https://c/d")),
        ("https://a/b", "https://user:secret@c/d", "https://c/d"),
        *(("https://a/b", "/c d", "https://a/c%20d"), ("https://a/b", "http://c/d", None)),
        *(("https://a/b", "", None), ("https://a/b", "ftp://c/d", None)),
        *(("https://a/b", "file:///etc/shadow", None), ("https://a/b", "data:,x", None)),
        ("https://a/b", "https://c:99999/", None),
    ],
)
def test_targets(current: str, location: str, target: str | None) -> None:
    """A redirect leads to the web, without credentials, and never out of https."""
    if target is None:
        with pytest.raises(UpstreamError):
            next_url(URL(current), location)
    else:
        assert str(next_url(URL(current), location)) == target


async def test_a_redirect_within_the_origin_keeps_credentials() -> None:
    """The same origin is the same door."""

    async def cache(request: web.Request) -> web.Response:
        if not request.path.startswith("/moved"):
            return web.Response(status=301, headers={"Location": f"/moved{request.path}"})
        return web.Response(text=narinfo_text() if "Authorization" in request.headers else "")

    async with serve(cache) as url, asking(url.replace("//", "//user:pass@")) as upstreams:
        assert await upstreams.find(HASH_PART) is not None


async def test_where_a_redirect_led_is_not_told() -> None:
    """A storage's URL is signed: whoever reads it may read what lies there."""
    async with talk(saying(b"HTTP/1.1 200 OK\r\nX\r\n\r\n")) as storage:
        moved = answering(status=302, headers={"Location": f"{storage}/x?signature=secret"})
        async with serve(moved) as url, asking(url) as upstreams:
            with pytest.raises(UpstreamError, match="does not speak HTTP") as raised:
                await upstreams.find(HASH_PART)
            assert "secret" not in f"{raised.value}{upstreams.health()}"


async def test_a_dead_storage_is_not_a_dead_upstream() -> None:
    """The upstream itself answered, so one broken redirect does not stop all look-ups."""
    moved = answering(status=302, headers={"Location": refusing()})
    async with serve(moved) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)
        assert upstreams.health()[0].state == "closed"


async def test_redirects_end() -> None:
    """A loop is an error after five steps."""
    asked: list[Asked] = []
    around = answering(status=302, headers={"Location": "again"}, asked=asked)
    async with serve(around) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError, match="more than 5 redirects"):
            await upstreams.find(HASH_PART)
    assert len(asked) == 6

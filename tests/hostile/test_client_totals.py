"""What a server may send us in total, however it is cut into pages: each bound at twice its size.

The error names the bound, and what was read until then is not kept.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiohttp import web

from nixcache_oci.clients.binary_cache import web as web_cache
from nixcache_oci.clients.binary_cache.web import WebCache
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.github import packages as github_packages
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.registry import tags
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import Error, RegistryError, UpstreamError
from nixcache_oci.oci.reference import RegistryReference
from tests.clients.registry_helper import NAME, opened
from tests.support.objects import hash_part_of
from tests.support.process import stalls_measured
from tests.support.upstream_server import Handler, narinfo_text, serve

_CREDENTIALS: Final = Credentials("user", "token", "test")
_MIB: Final = 1024 * 1024


def pages(bodies: Iterator[bytes], asked: list[str]) -> Handler:
    """Serve one body after another, each with a link to the next."""

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        link = f'<{request.path}?page={len(asked)}>; rel="next"'
        return web.Response(body=next(bodies), headers={"Link": link, "Content-Type": "application/json"})

    return answer


def tags_of(count: int, length: int) -> Iterator[bytes]:
    """Give pages of so many tags of so many characters, without end."""
    for number in itertools.count():
        tags = [f"{number}-{index}".rjust(length, "x") for index in range(count)]
        yield json.dumps({"name": "x", "tags": tags}).encode()


@pytest.mark.parametrize(
    ("bodies", "reason", "most_pages"),
    [
        pytest.param(tags_of(10_000, 8), "over 100000 tags", 11, id="many tags"),
        pytest.param(tags_of(2_000, 2_000), "over 16777216 bytes", 5, id="long tags"),
        pytest.param(tags_of(0, 0), "does not end after 1000 pages", 1_000, id="no tags"),
        pytest.param(iter([b'{"tags":[' + b'"",' * 5_000_000]), "over 100000 tags", 1, id="a page of commas"),
        pytest.param(iter([b'{"tags":["' + b"a" * 32 * _MIB]), "over 16777216 bytes", 1, id="one long tag"),
    ],
)
async def test_a_list_of_tags_is_bounded_in_total(
    bodies: Iterator[bytes], reason: str, most_pages: int
) -> None:
    """Tags, bytes and pages, whichever is the first; and nobody else waits while it is read."""
    asked: list[str] = []
    async with serve(pages(bodies, asked)) as url:
        host = url.removeprefix("http://")
        async with opened(host, None, patience=1, stall=20) as registry, stalls_measured() as longest:
            with pytest.raises(RegistryError, match=reason) as raised:
                await registry.list_tags()
    assert not raised.value.is_temporary
    assert len(asked) <= most_pages
    assert longest[0] < 1


async def test_a_list_of_tags_takes_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand pages, each of which comes just in time, would hold up a refresh for hours."""
    monkeypatch.setattr(tags, "_MOST_SECONDS", 0.2)
    asked: list[str] = []
    async with (
        serve(pages(tags_of(1, 8), asked)) as url,
        opened(url.removeprefix("http://"), None, patience=1, stall=20) as registry,
    ):
        began = time.monotonic()
        with pytest.raises(RegistryError, match="does not end after"):
            await registry.list_tags()
        assert time.monotonic() - began < 10


def versions_of(count: int, extra: int) -> Iterator[bytes]:
    for number in itertools.count():
        yield json.dumps(
            [
                {
                    "id": index + 1,
                    "name": f"sha256:{number:032x}{index:032x}",
                    "created_at": "2026-01-01T00:00:00Z",
                    "metadata": {"container": {"tags": ["x" * extra]}},
                }
                for index in range(count)
            ]
        ).encode()


@pytest.mark.parametrize(("count", "extra"), [(200, 10), (10, 2_000)], ids=["versions", "bytes"])
async def test_a_list_of_versions_is_bounded_in_total(
    count: int, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What GitHub's API lists is held until the run ends."""
    monkeypatch.setattr(github_packages, "_MOST_VERSIONS", 1_000)
    monkeypatch.setattr(github_packages, "_MOST_BYTES", 200_000)
    asked: list[str] = []
    async with serve(pages(versions_of(count, extra), asked)) as url:
        reference = RegistryReference(url.removeprefix("http://"), plain_http=True, repository=NAME)
        packages = GithubPackages(url, reference, _CREDENTIALS, patience=1)
        with pytest.raises(RegistryError, match="the list has over 1000 versions, or 200000 bytes"):
            await packages.untagged()
        await packages.close()
    assert len(asked) < 20


@asynccontextmanager
async def importing(url: str) -> AsyncIterator[WebCache]:
    cache = WebCache(parse_upstream(url), pauses_seconds=(0,))
    try:
        yield cache
    finally:
        await cache.close()


async def test_imported_narinfos_are_bounded_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """References may lead from one to the next without end."""
    monkeypatch.setattr(web_cache, "_MOST_TOTAL_BYTES", 10_000)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=narinfo_text(request.path[1:33]))

    async with serve(answer) as url, importing(url) as cache:

        async def read_on() -> None:
            for number in range(1_000):
                assert await cache.read_narinfo(hash_part_of(str(number)))

        with pytest.raises(UpstreamError, match="over 10000 bytes in total; import fewer paths at a time"):
            await read_on()


async def test_a_token_is_bounded() -> None:
    """One that no server would take back is none."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": "a" * 128 * 1024})
        challenge = f'Bearer realm="http://{request.host}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with (
        serve(answer) as url,
        opened(url.removeprefix("http://"), None, patience=0.1, stall=20) as registry,
    ):
        with pytest.raises(RegistryError, match="holds no token"):
            await registry.list_tags()


async def test_a_document_in_tiny_chunks_holds_nobody_up() -> None:
    """A body may be cut into a chunk for each byte; they are joined before they are looked at."""
    piece = b"1\r\na\r\n" * 40_000

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Transfer-Encoding": "chunked"})
        await response.prepare(request)
        assert request.transport is not None
        transport = request.transport
        for _ in range(8):
            transport.write(piece)  # below the framing of aiohttp
            await asyncio.sleep(0)
        transport.close()
        return response

    async with (
        serve(answer) as url,
        opened(url.removeprefix("http://"), None, patience=0.1, stall=20) as registry,
        stalls_measured() as longest,
    ):
        with pytest.raises(Error):
            await registry.get_manifest("a")
    assert longest[0] < 1

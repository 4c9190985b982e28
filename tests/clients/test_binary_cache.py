"""A binary cache to read from: one clear line for whatever is wrong, a bounded number of tries."""

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.clients.binary_cache.folder import FolderCache
from nixcache_oci.clients.binary_cache.source import BinaryCache, find_narinfo, read_store_dir
from nixcache_oci.clients.binary_cache.web import WebCache
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import FormatError, UpstreamError, UpstreamNotFoundError
from tests.support.odd_files import NO_FILES, NO_FOLDERS, put_in_place
from tests.support.upstream_server import HASH_PART, answering, narinfo_text, refusing, serve

CONTENT = bytes(range(256)) * 4096
PAUSES = (0.01, 0.01)


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[WebCache]:
    cache = WebCache(parse_upstream(url), PAUSES)
    try:
        yield cache
    finally:
        await cache.close()


async def read_nar(cache: BinaryCache, url: str) -> bytes:
    async with cache.open_nar(url) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize(
    ("text", "store_dir"),
    [("StoreDir: /nix/store\n", "/nix/store"), ("StoreDir: /a/b\nPriority: 1\n", "/a/b"), ("", "/nix/store")],
)
async def test_what_a_cache_says_of_itself(tmp_path: Path, text: str, store_dir: str) -> None:
    """Its store dir; without one it is the usual, as Nix takes it."""
    (tmp_path / "nix-cache-info").write_text(text)
    assert await read_store_dir(FolderCache(tmp_path)) == store_dir
    async with serve(answering(text=text)) as url, reading(url) as cache:
        assert await read_store_dir(cache) == store_dir


async def test_what_is_no_cache(tmp_path: Path) -> None:
    """No folder, no nix-cache-info, a store dir that is none, 404, nobody there: each in one line."""
    with pytest.raises(UpstreamError, match="nowhere: there is no such folder"):
        await read_store_dir(FolderCache(tmp_path / "nowhere"))
    with pytest.raises(UpstreamError, match="is not a binary cache: it has no nix-cache-info"):
        await read_store_dir(FolderCache(tmp_path))
    (tmp_path / "nix-cache-info").write_bytes(b"StoreDir: nix\xff\n")
    with pytest.raises(UpstreamError, match="nix-cache-info: "):
        await read_store_dir(FolderCache(tmp_path))
    async with serve(answering(status=404)) as url, reading(url) as cache:
        with pytest.raises(UpstreamError, match="is not a binary cache: it has no nix-cache-info"):
            await read_store_dir(cache)
    async with reading(refusing()) as cache:
        with pytest.raises(UpstreamError, match="no connection to"):
            await read_store_dir(cache)


async def test_trouble_that_passes_is_sat_out_and_trouble_that_stays_ends_it() -> None:
    """A request is tried three times here, and no more."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        if "ever" in request.path or asked.count(request.path) <= len(PAUSES):
            return web.Response(status=503)
        return web.Response(body=gzip.compress(narinfo_text().encode()), headers={"Content-Encoding": "gzip"})

    async with serve(handle) as url, reading(url) as cache, reading(f"{url}/ever") as never:
        assert await find_narinfo(cache, HASH_PART) is not None
        with pytest.raises(UpstreamError, match="ever: nix-cache-info: status 503"):
            await read_store_dir(never)
    assert asked.count("/ever/nix-cache-info") == len(PAUSES) + 1


async def test_a_nar_that_breaks_off_is_resumed() -> None:
    """From where it stopped, where the server can do that."""
    ranges: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        ranges.append(request.headers.get("Range", ""))
        start = int(ranges[-1].removeprefix("bytes=").partition("-")[0] or 0)
        end = len(CONTENT)
        response = web.StreamResponse(
            status=206 if start else 200,
            headers={
                "Accept-Ranges": "bytes",
                "ETag": '"x"',
                "Content-Length": str(end - start),
                **({"Content-Range": f"bytes {start}-{end - 1}/{end}"} if start else {}),
            },
        )
        await response.prepare(request)
        if len(ranges) < 3:
            await response.write(CONTENT[start : start + 100_000])
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(CONTENT[start:])
        return response

    async with serve(handle) as url, reading(url) as cache:
        assert await read_nar(cache, "nar/x.nar") == CONTENT
    assert len(ranges) == 3


@pytest.mark.parametrize(
    "url", ["../secret", "nar/../../secret", "/etc/passwd", "nar//x", "file:///etc/passwd", "nar/./x", "nar"]
)
async def test_a_url_stays_below_the_cache(tmp_path: Path, url: str) -> None:
    """A stranger's narinfo names files of its own cache, and nothing else on this machine or network."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "cache/nar").mkdir(parents=True)
    with pytest.raises(UpstreamNotFoundError):
        await read_nar(FolderCache(tmp_path / "cache"), url)
    if url != "nar":
        async with serve(answering(text="secret")) as base, reading(f"{base}/cache") as cache:
            with pytest.raises(UpstreamNotFoundError):
                await read_nar(cache, url)
            with pytest.raises(UpstreamNotFoundError, match="is in another cache"):
                await read_nar(cache, "http://127.0.0.1:1/nar/x")


NARINFO_NAME = f"{HASH_PART}.narinfo"
PLACES: dict[str, tuple[Iterable[str], Callable[[BinaryCache], Awaitable[object]]]] = {
    "nix-cache-info": (NO_FILES, read_store_dir),
    NARINFO_NAME: (NO_FILES, lambda cache: find_narinfo(cache, HASH_PART)),
    "nar": (NO_FOLDERS, lambda cache: read_nar(cache, "nar/x.nar")),
    "nar/x.nar": (NO_FILES, lambda cache: read_nar(cache, "nar/x.nar")),
}


@pytest.mark.parametrize(
    ("place", "kind"), [(place, kind) for place, (kinds, _) in PLACES.items() for kind in kinds]
)
async def test_only_files_are_read(tmp_path: Path, place: str, kind: str) -> None:
    """A pipe would be waited for, and a link leads to files that are nobody's to publish: it is named."""
    folder, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "nar").mkdir(parents=True)
    (folder / "nar/x.nar").write_bytes(CONTENT)
    (folder / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (folder / NARINFO_NAME).write_text(narinfo_text())
    read = PLACES[place][1]
    assert await read(FolderCache(folder))
    named = put_in_place(kind, folder / place, elsewhere)
    with pytest.raises(UpstreamError, match=re.escape(named)):
        async with asyncio.timeout(10):
            await read(FolderCache(folder))


async def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    """Its path is the user's own."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/x").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    assert await read_nar(FolderCache(tmp_path / "link"), "x") == CONTENT


async def test_a_narinfo_is_about_what_it_is_named_after(tmp_path: Path) -> None:
    """Else whoever asks for one path gets another; and it is never as large as a NAR."""
    cache = FolderCache(tmp_path)
    (tmp_path / f"{HASH_PART}.narinfo").write_text(narinfo_text("0" * 32))
    with pytest.raises(FormatError, match="is about /nix/store/0000"):
        await find_narinfo(cache, HASH_PART)
    (tmp_path / f"{HASH_PART}.narinfo").write_bytes(bytes(2 * 1024 * 1024))
    with pytest.raises(FormatError, match="over 1048576 bytes"):
        await find_narinfo(cache, HASH_PART)
    assert await cache.list_names() == [HASH_PART]

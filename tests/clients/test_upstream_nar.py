"""NARs of upstreams: heads as a table, streams from real servers that cut, stall and lie."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.nar_stream import NarHead, range_headers, read_head
from nixcache_oci.errors import UpstreamBusyError, UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.store_path import HashPart
from tests.clients.test_content_coding import CODINGS
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.upstream_server import (
    HASH_PART,
    Asked,
    Handler,
    answering,
    asking,
    refusing,
    saying,
    serve,
    talk,
)

UPSTREAM = parse_upstream("https://cache.example.org")
SIGNER = UrlSigner(bytes(32))
CONTENT = bytes(range(256)) * 4096
MIB = 1024 * 1024
TAG = {"ETag": '"v1"', "Accept-Ranges": "bytes"}


def key_of(upstreams: Upstreams) -> str:
    return parse_upstream(upstreams.health()[0].url).key


def signed(upstreams: Upstreams, path: str, query: str = "") -> tuple[str, str]:
    """Give path and query as a narinfo's URL names them to clients."""
    return SIGNER.sign(key_of(upstreams), path, query), query


@asynccontextmanager
async def one(handler: Handler) -> AsyncIterator[Upstreams]:
    async with (
        serve(handler) as url,
        asking(f"{url}/base", resume_pause_seconds=0.001, signer=SIGNER) as upstreams,
    ):
        yield upstreams


async def read(upstreams: Upstreams, *, start: int = 0, end: int | None = None) -> tuple[NarHead, bytes]:
    async with upstreams.open_nar(key_of(upstreams), "nar/x.nar", start=start, end=end) as nar:
        return nar.head, b"".join([chunk async for chunk in nar.chunks])


def file_of(content: bytes, headers: dict[str, str]) -> Handler:
    """Make a handler that serves one file with single ranges."""

    async def handle(request: web.Request) -> web.Response:
        asked = request.http_range
        if asked.start is None and asked.stop is None:
            return web.Response(body=content, headers=headers)
        start, stop = asked.start or 0, min(asked.stop or len(content), len(content))
        if start >= len(content):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        content_range = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return web.Response(status=206, body=content[start:stop], headers={**headers, **content_range})

    return handle


class CuttingServer:
    """Sends at most so many bytes per connection, then cuts it."""

    def __init__(self, cut: int, headers: dict[str, str], *, is_chunked: bool = False) -> None:
        self.cut = cut
        self.headers = headers
        self.is_chunked = is_chunked
        self.content = CONTENT
        self.asked: list[tuple[str | None, str | None]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((wanted, condition))
        start, status, headers = 0, 200, dict(self.headers)
        if wanted and condition in {None, self.headers.get("ETag"), self.headers.get("Last-Modified")}:
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        response = web.StreamResponse(status=status, headers=headers)
        if self.is_chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(self.content) - start
        await response.prepare(request)
        if self.cut:
            await response.write(self.content[start : start + self.cut])
        if start + self.cut < len(self.content):
            await asyncio.sleep(0.01)
            assert request.transport is not None
            request.transport.abort()
        return response


@pytest.mark.parametrize(
    ("start", "end", "status", "headers", "expected"),
    [
        (0, None, 200, {"Content-Length": "9"}, NarHead(200, 9, 0, 9, False, "")),
        (0, None, 200, {}, NarHead(200, None, 0, None, False, "")),
        (0, None, 200, {"Content-Length": "9", **TAG}, NarHead(200, 9, 0, 9, True, '"v1"')),
        (
            0,
            None,
            200,
            {"ETag": 'W/"v"', "Last-Modified": "then"},
            NarHead(200, None, 0, None, False, "then"),
        ),
        (0, None, 200, {"Content-Encoding": "identity"}, NarHead(200, None, 0, None, False, "")),
        (5, None, 200, {"Content-Length": "9"}, NarHead(200, 9, 0, 9, False, "")),
        (5, None, 206, {"Content-Range": "bytes 5-8/9"}, NarHead(206, 9, 5, 9, True, "")),
        (5, 7, 206, {"Content-Range": "bytes 5-6/9"}, NarHead(206, 9, 5, 7, True, "")),
        (5, 20, 206, {"Content-Range": "bytes 5-8/9"}, NarHead(206, 9, 5, 9, True, "")),
        (5, 7, 206, {"Content-Range": "bytes 5-6/*"}, NarHead(206, None, 5, 7, True, "")),
        (0, None, 404, {}, UpstreamNotFoundError),
        (0, None, 403, {}, UpstreamNotFoundError),
        (9, None, 416, {"Content-Range": "bytes */9"}, UpstreamNotFoundError),
        (0, None, 500, {}, UpstreamBusyError),
        (0, None, 204, {}, UpstreamError),
        (0, None, 304, {}, UpstreamError),
        (0, None, 401, {}, UpstreamError),
        (0, None, 200, {"Content-Encoding": "br", **TAG}, NarHead(200, None, 0, None, False, "", "br")),
        (0, None, 200, {"Content-Encoding": "compress"}, UpstreamError),
        (5, None, 206, {"Content-Range": "bytes 5-8/9", "Content-Encoding": "br"}, UpstreamError),
        (0, None, 206, {"Content-Range": "bytes 0-8/9"}, UpstreamError),
        (5, None, 206, {}, UpstreamError),
        (5, None, 206, {"Content-Range": "bytes 4-8/9"}, UpstreamError),
        (5, 7, 206, {"Content-Range": "bytes 5-7/9"}, UpstreamError),
        (5, None, 206, {"Content-Range": "bytes 5-9/9"}, UpstreamError),
        (5, None, 206, {"Content-Range": "bytes 5-4/9"}, UpstreamError),
        (5, None, 206, {"Content-Range": "bytes 5-x/9"}, UpstreamError),
    ],
)
def test_heads(
    start: int, end: int | None, status: int, headers: dict[str, str], expected: NarHead | type[UpstreamError]
) -> None:
    """What an answer says about its bytes is believed only where it fits the question."""
    if isinstance(expected, NarHead):
        assert read_head(UPSTREAM, status, headers, start, end) == expected
    else:
        with pytest.raises(UpstreamError) as caught:
            read_head(UPSTREAM, status, headers, start, end)
        assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("start", "end", "validator", "headers"),
    [
        (0, None, "", {}),
        (0, None, '"v1"', {}),
        (0, 10, "", {"Range": "bytes=0-9"}),
        (7, None, "", {"Range": "bytes=7-"}),
        (7, 10, '"v1"', {"Range": "bytes=7-9", "If-Range": '"v1"'}),
    ],
)
def test_questions(start: int, end: int | None, validator: str, headers: dict[str, str]) -> None:
    """Offsets become a Range header; the whole needs none."""
    assert range_headers(start, end, validator) == headers


async def test_a_nar_is_streamed() -> None:
    """Path and query arrive at the upstream as they came, and its bytes as they are."""
    asked: list[Asked] = []
    async with (
        one(answering(body=CONTENT, headers=TAG, asked=asked)) as upstreams,
        upstreams.open_nar(key_of(upstreams), *signed(upstreams, "nar/a%2Bb.nar", "hash=%2B")) as nar,
    ):
        content = b"".join([chunk async for chunk in nar.chunks])
        assert nar.head == NarHead(200, len(CONTENT), 0, len(CONTENT), True, '"v1"')
    assert content == CONTENT
    [request] = asked
    assert request.path == "/base/nar/a%2Bb.nar?hash=%2B"
    assert request.headers["Accept-Encoding"] == "identity"


async def test_a_part_is_streamed() -> None:
    """A client's own range is passed on; where the whole comes instead, the head tells."""
    async with one(file_of(CONTENT, TAG)) as upstreams:
        head, content = await read(upstreams, start=1000, end=5000)
        assert (head.status, head.size, head.start, head.end) == (206, len(CONTENT), 1000, 5000)
        assert content == CONTENT[1000:5000]
        head, content = await read(upstreams, start=len(CONTENT) - 3)
        assert (head.start, head.end, content) == (len(CONTENT) - 3, len(CONTENT), CONTENT[-3:])
        with pytest.raises(UpstreamNotFoundError):
            await read(upstreams, start=len(CONTENT))
    async with one(answering(text="whole")) as upstreams:
        head, content = await read(upstreams, start=2)
    assert (head.status, head.start, content) == (200, 0, b"whole")


async def test_a_head_is_asked_for_without_bytes() -> None:
    """HEAD tells what GET would find."""
    asked: list[Asked] = []
    async with one(answering(body=CONTENT, headers=TAG, asked=asked)) as upstreams:
        head = await upstreams.head_nar(key_of(upstreams), "nar/x.nar")
        assert (head.size, head.accepts_ranges) == (len(CONTENT), True)
        with pytest.raises(UpstreamNotFoundError):
            await upstreams.head_nar("0" * 16, "nar/x.nar")
    assert [request.method for request in asked] == ["HEAD"]


@pytest.mark.parametrize("path", ["../x", "nar/%2e%2e/x", "nar//x", "", "/x", "nar/%252Fx"])
async def test_odd_paths_never_reach_the_upstream(path: str) -> None:
    """They are answered as if there was nothing, also where a stranger's narinfo names them."""
    asked: list[Asked] = []
    async with one(answering(asked=asked)) as upstreams:
        key = key_of(upstreams)
        for where in ((key, path), (key, *signed(upstreams, path)), ("f" * 16, "nar/x.nar")):
            with pytest.raises(UpstreamNotFoundError):
                async with upstreams.open_nar(*where):
                    pass
    assert asked == []


async def test_nars_and_narinfos_share_the_breaker() -> None:
    """An upstream that says no is well; a dead one costs one connection."""
    async with one(answering(status=404)) as upstreams:
        for _ in range(4):
            with pytest.raises(UpstreamNotFoundError):
                await read(upstreams)
        assert (upstreams.health()[0].state, upstreams.health()[0].failures) == ("closed", 0)
    async with asking(refusing()) as upstreams:
        for reason in ("no connection to", "not asked"):
            with pytest.raises(UpstreamError, match=reason):
                await read(upstreams)


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_content_encoding_on_a_nar_is_undone(coding: str) -> None:
    """Nix gets what lies at the URL, and from here never an encoding, which older ones cannot undo."""
    name, compress = CODINGS[coding]
    async with one(answering(body=compress(CONTENT), headers={"Content-Encoding": name})) as upstreams:
        assert (await read(upstreams))[1] == CONTENT


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "compress"])
async def test_a_content_encoding_that_cannot_be_undone_is_an_error(coding: str) -> None:
    """Nix would get bytes that are not the ones that the narinfo describes."""
    async with one(answering(body=CONTENT, headers={"Content-Encoding": coding})) as upstreams:
        with pytest.raises(UpstreamError, match="Content-Encoding"):
            await read(upstreams)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(
    "headers", [TAG, {"Last-Modified": "Sat, 21 Nov 2026 04:00:00 GMT", "Accept-Ranges": "bytes"}]
)
async def test_a_cut_stream_goes_on(headers: dict[str, str], *, is_chunked: bool) -> None:
    """A connection that breaks is not the client's problem, as often as there is progress."""
    server = CuttingServer(150_000, headers, is_chunked=is_chunked)
    async with one(server.handle) as upstreams:
        head, content = await read(upstreams)
    assert content == CONTENT
    assert head.size == (None if is_chunked else len(CONTENT))
    assert len(server.asked) == 7
    assert {condition for _, condition in server.asked[1:]} == {next(iter(headers.values()))}


async def test_a_cut_part_goes_on_to_its_own_end() -> None:
    """A resumed part ends where the part was to end."""
    server = CuttingServer(400_000, TAG)
    async with one(server.handle) as upstreams:
        head, content = await read(upstreams, start=100)
    assert (head.start, content) == (100, CONTENT[100:])
    assert server.asked[:2] == [("bytes=100-", None), (f"bytes=400100-{len(CONTENT) - 1}", '"v1"')]


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": '"v1"'}, {"Accept-Ranges": "bytes"}, {**TAG, "ETag": 'W/"v1"'}]
)
async def test_a_cut_stream_breaks_where_it_cannot_be_resumed(headers: dict[str, str]) -> None:
    """Without ranges and a strong validator nobody knows whether the rest belongs to the beginning."""
    server = CuttingServer(150_000, headers)
    async with one(server.handle) as upstreams:
        with pytest.raises(UpstreamError):
            await read(upstreams)
    assert len(server.asked) == 1


async def read_and(upstreams: Upstreams, change: Callable[[], object], received: bytearray) -> None:
    """Read a NAR, and change something with each chunk."""
    async with upstreams.open_nar(key_of(upstreams), "nar/x.nar") as nar:
        async for chunk in nar.chunks:
            received += chunk
            change()


async def test_resuming_without_progress_ends() -> None:
    """An upstream that sends nothing any more is given up."""
    server = CuttingServer(150_000, TAG)
    received = bytearray()
    async with one(server.handle) as upstreams:
        with pytest.raises(UpstreamError):
            await read_and(upstreams, lambda: setattr(server, "cut", 0), received)
    assert 0 < len(received) <= 150_000
    assert CONTENT.startswith(bytes(received))
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize("is_noted", [True, False])
async def test_a_nar_that_changed_is_not_patched_together(*, is_noted: bool) -> None:
    """Two halves of different NARs are no NAR; where the validator is kept, the size tells."""
    server = CuttingServer(150_000, dict(TAG))
    name, value = ("headers", {**TAG, "ETag": '"v2"'}) if is_noted else ("content", CONTENT[:-1])
    async with one(server.handle) as upstreams:
        with pytest.raises(UpstreamError, match="changed"):
            await read_and(upstreams, lambda: setattr(server, name, value), bytearray())


@pytest.mark.parametrize(
    ("body", "reason"), [(b"012", "cut at byte 3 of 5"), (b"0123456789", "more bytes")], ids=["fewer", "more"]
)
async def test_as_many_bytes_come_as_were_announced(body: bytes, reason: str) -> None:
    """What contradicts itself about its length is not taken for whole; a client gets what it was promised."""
    part = answering(status=206, body=body, headers={"Content-Range": "bytes 0-4/100"})
    async with one(part) as upstreams:
        with pytest.raises(UpstreamError, match=reason):
            await read(upstreams, end=5)


async def test_a_big_nar_needs_little_memory() -> None:
    """A slow reader slows the upstream down, nothing piles up here; one who hangs up cuts the connection."""
    sent: list[int] = []
    gone = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"
    endless = saying(head, again=[bytes(MIB)], sent=sent, ended=gone)
    async with talk(endless) as url, asking(url) as upstreams:
        async with upstreams.open_nar(key_of(upstreams), "nar/x.nar") as nar:
            received = largest = len(await anext(nar.chunks))
            await asyncio.sleep(0.2)
            assert sum(sent) < 64 * MIB  # what kernel and buffers hold, whatever the NAR's size
            async for chunk in nar.chunks:
                received += len(chunk)
                largest = max(largest, len(chunk))
                if received >= 256 * MIB:
                    break
        async with asyncio.timeout(30):
            await gone.wait()
    assert sum(sent) < received + 64 * MIB
    assert largest <= 2 * MIB


@pytest.mark.parametrize("length", [2**64 - 1, 10**19])
async def test_a_length_beyond_all_files_is_none(length: int) -> None:
    """With the largest one, the HTTP library takes the body for empty: a NAR that is wrong, and whole."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nbeginning" % length
    async with talk(saying(head)) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError, match="wrong Content-Length"):
            await read(upstreams)


@pytest.mark.needs("nix", "nix-store", "nix-build", "nginx")
async def test_a_cache_that_nix_wrote(tmp_path: Path) -> None:
    """Each path of a real cache is found, its NAR arrives whole and in parts; other paths are misses."""
    cache = tmp_path / "cache"
    nix = NixSandbox(tmp_path / "nix")
    paths = await asyncio.to_thread(nix.build_paths, 12)
    (await asyncio.to_thread(nix.copy_to, f"file://{cache}", paths)).check()
    async with nginx(tmp_path / "nginx", cache) as url, asking(url) as upstreams:
        for path in paths:
            narinfo = await upstreams.find(HashPart(Path(path).name[:32]))
            assert narinfo is not None
            assert str(narinfo.store_path) == path
            _, key, relative = narinfo.url.split("/", 2)
            content = (cache / relative.partition("/")[2]).read_bytes()
            assert (await upstreams.head_nar(key, relative)).size == len(content)
            async with upstreams.open_nar(key, relative) as nar:
                assert b"".join([chunk async for chunk in nar.chunks]) == content
            assert nar.head.accepts_ranges
            assert nar.head.validator
            start = random.Random(path).randrange(len(content))
            async with upstreams.open_nar(key, relative, start=start) as nar:
                assert b"".join([chunk async for chunk in nar.chunks]) == content[start:]
            assert (nar.head.status, nar.head.size) == (206, len(content))
        assert await upstreams.find(HASH_PART) is None
        [health] = upstreams.health()
    assert (health.hits, health.misses, health.failures) == (12, 1, 0)

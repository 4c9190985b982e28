"""NARs of upstreams: heads as a table, streams from real servers that cut, stall and lie."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.nar_stream import NarHead, range_headers, read_head
from nixcache_oci.errors import UpstreamError, UpstreamNotFoundError
from tests.clients.test_content_coding import CODINGS
from tests.support.upstream_server import Handler, answering, asking, refusing, serve, talk

UPSTREAM = parse_upstream("https://cache.example.org")
SIGNER = UrlSigner(bytes(32))
CONTENT = bytes(range(256)) * 4096
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
        (0, None, 500, {}, UpstreamError),
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
    asked: list[tuple[str, str]] = []

    async def cache(request: web.Request) -> web.Response:
        asked.append((request.raw_path, request.headers["Accept-Encoding"]))
        return web.Response(body=CONTENT, headers=TAG)

    async with (
        one(cache) as upstreams,
        upstreams.open_nar(key_of(upstreams), *signed(upstreams, "nar/a%2Bb.nar", "hash=%2B")) as nar,
    ):
        content = b"".join([chunk async for chunk in nar.chunks])
        assert nar.head == NarHead(200, len(CONTENT), 0, len(CONTENT), True, '"v1"')
    assert content == CONTENT
    assert asked == [("/base/nar/a%2Bb.nar?hash=%2B", "identity")]


async def test_a_part_is_streamed() -> None:
    """A client's own range is passed on."""
    async with one(file_of(CONTENT, TAG)) as upstreams:
        head, content = await read(upstreams, start=1000, end=5000)
        assert (head.status, head.size, head.start, head.end) == (206, len(CONTENT), 1000, 5000)
        assert content == CONTENT[1000:5000]
        head, content = await read(upstreams, start=len(CONTENT) - 3)
        assert (head.start, head.end, content) == (len(CONTENT) - 3, len(CONTENT), CONTENT[-3:])
        with pytest.raises(UpstreamNotFoundError):
            await read(upstreams, start=len(CONTENT))


async def test_an_upstream_without_ranges_answers_with_the_whole() -> None:
    """Which the head tells, so nobody takes it for the part."""
    async with one(answering(text="whole")) as upstreams:
        head, content = await read(upstreams, start=2)
    assert (head.status, head.start, content) == (200, 0, b"whole")


async def test_a_head_is_asked_for_without_bytes() -> None:
    """HEAD tells what GET would find."""
    methods: list[str] = []

    async def cache(request: web.Request) -> web.Response:
        methods.append(request.method)
        return web.Response(body=CONTENT, headers=TAG)

    async with one(cache) as upstreams:
        head = await upstreams.head_nar(key_of(upstreams), "nar/x.nar")
        assert (head.size, head.accepts_ranges) == (len(CONTENT), True)
        with pytest.raises(UpstreamNotFoundError):
            await upstreams.head_nar("0" * 16, "nar/x.nar")
    assert methods == ["HEAD"]


@pytest.mark.parametrize("path", ["../x", "nar/%2e%2e/x", "nar//x", "", "/x", "nar/%252Fx"])
async def test_odd_paths_never_reach_the_upstream(path: str) -> None:
    """They are answered as if there was nothing."""
    asked: list[str] = []

    async def cache(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response()

    async with one(cache) as upstreams:
        with pytest.raises(UpstreamNotFoundError):
            async with upstreams.open_nar(key_of(upstreams), path):
                pass
        with pytest.raises(UpstreamNotFoundError):  # a stranger wrote the narinfo
            async with upstreams.open_nar(key_of(upstreams), *signed(upstreams, path)):
                pass
        with pytest.raises(UpstreamNotFoundError):
            async with upstreams.open_nar("f" * 16, "nar/x.nar"):
                pass
    assert asked == []


async def test_an_absent_nar_is_no_failure() -> None:
    """An upstream that says no is well."""
    async with one(answering(status=404)) as upstreams:
        for _ in range(4):
            with pytest.raises(UpstreamNotFoundError):
                await read(upstreams)
        assert (upstreams.health()[0].state, upstreams.health()[0].failures) == ("closed", 0)


async def test_a_dead_upstream_costs_a_nar_nothing_either() -> None:
    """NARs and narinfos share the breaker."""
    async with asking(refusing()) as upstreams:
        with pytest.raises(UpstreamError, match="no connection to"):
            await read(upstreams)
        with pytest.raises(UpstreamError, match="not asked"):
            await read(upstreams)


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_content_encoding_on_a_nar_is_undone(coding: str) -> None:
    """Nix gets what lies at the URL, and from here never an encoding, which older ones cannot undo."""
    name, compress = CODINGS[coding]

    async def cache(_request: web.Request) -> web.Response:
        return web.Response(body=compress(CONTENT), headers={"Content-Encoding": name})

    async with one(cache) as upstreams:
        assert (await read(upstreams))[1] == CONTENT


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "compress"])
async def test_a_content_encoding_that_cannot_be_undone_is_an_error(coding: str) -> None:
    """Nix would get bytes that are not the ones that the narinfo describes."""

    async def cache(_request: web.Request) -> web.Response:
        return web.Response(body=CONTENT, headers={"Content-Encoding": coding})

    async with one(cache) as upstreams:
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


async def test_resuming_without_progress_ends() -> None:
    """An upstream that sends nothing any more is given up."""
    server = CuttingServer(150_000, TAG)
    async with one(server.handle) as upstreams:
        received = b""
        with pytest.raises(UpstreamError):  # noqa: PT012 - the stream breaks while it is read
            async with upstreams.open_nar(key_of(upstreams), "nar/x.nar") as nar:
                async for chunk in nar.chunks:
                    received += chunk
                    server.cut = 0
    assert 0 < len(received) <= 150_000
    assert CONTENT.startswith(received)
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize("is_noted", [True, False])
async def test_a_nar_that_changed_is_not_patched_together(*, is_noted: bool) -> None:
    """Two halves of different NARs are no NAR; where the validator is kept, the size tells."""
    server = CuttingServer(150_000, dict(TAG))
    async with one(server.handle) as upstreams:
        with pytest.raises(UpstreamError, match="changed"):  # noqa: PT012 - the stream breaks while it is read
            async with upstreams.open_nar(key_of(upstreams), "nar/x.nar") as nar:
                async for _ in nar.chunks:
                    if is_noted:
                        server.headers["ETag"] = '"v2"'
                    else:
                        server.content = CONTENT[:-1]


@pytest.mark.parametrize(
    ("body", "reason"), [(b"012", "cut at byte 3 of 5"), (b"0123456789", "more bytes")], ids=["fewer", "more"]
)
async def test_as_many_bytes_come_as_were_announced(body: bytes, reason: str) -> None:
    """What contradicts itself about its length is not taken for whole; a client gets what it was promised."""

    async def cache(_request: web.Request) -> web.Response:
        return web.Response(status=206, body=body, headers={"Content-Range": "bytes 0-4/100"})

    async with one(cache) as upstreams:
        with pytest.raises(UpstreamError, match=reason):
            await read(upstreams, end=5)


async def test_leaving_early_cuts_the_connection() -> None:
    """A client that hangs up does not make us download the rest."""
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        try:
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        except OSError:
            gone.set()

    async with talk(endless) as url, asking(url) as upstreams:
        async with upstreams.open_nar(key_of(upstreams), "nar/x.nar") as nar:
            assert await anext(nar.chunks)
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_big_nar_needs_little_memory() -> None:
    """A slow reader slows the upstream down; nothing piles up here."""
    sent = 0
    size = 512 * 1024 * 1024

    async def big(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        piece = bytes(1024 * 1024)
        while sent < size:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    async with (
        talk(big) as url,
        asking(url) as upstreams,
        upstreams.open_nar(key_of(upstreams), "nar/x.nar") as nar,
    ):
        received = len(await anext(nar.chunks))
        await asyncio.sleep(0.2)
        assert sent < 64 * 1024 * 1024  # what kernel and buffers hold, whatever the NAR's size
        largest = 0
        async for chunk in nar.chunks:
            received += len(chunk)
            largest = max(largest, len(chunk))
    assert received == size
    assert largest <= 2 * 1024 * 1024


@pytest.mark.parametrize("length", [2**64 - 1, 10**19])
async def test_a_length_beyond_all_files_is_none(length: int) -> None:
    """With the largest one, the HTTP library takes the body for empty: a NAR that is wrong, and whole."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nbeginning" % length)

    async with talk(converse) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError, match="wrong Content-Length"):
            await read(upstreams)

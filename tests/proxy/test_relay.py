"""Relaying a NAR: 404 before the first byte, a cut after it, and never a second head in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import pytest
from aiohttp import web

from nixcache_oci.errors import RegistryError
from nixcache_oci.proxy.app_keys import COUNTERS
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.relay import ByteRange, nar_headers, relay, send_head, wanted_range

GET = b"GET /nar HTTP/1.1\r\nHost: localhost\r\n\r\n"

Chunks = Callable[[], AsyncIterator[bytes]]


def chunks_of(*pieces: bytes | Exception) -> Chunks:
    """Make a stream that yields these pieces, and raises those that are errors."""

    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            await asyncio.sleep(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return chunks


class Bench:
    """An application with one NAR; ``ask`` gives all bytes until the connection is closed."""

    def __init__(self, port: int, counters: Counters) -> None:
        self._port = port
        self.counters = counters
        self.counted: list[int] = []

    async def ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request)
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        except ConnectionResetError:
            return b"reset"
        finally:
            writer.close()


@asynccontextmanager
async def serving(chunks: Chunks, size: int | None) -> AsyncIterator[Bench]:
    extent = ByteRange.whole(size) if size is not None else None

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD":
            return await send_head(request, nar_headers(extent))
        try:
            return await relay(request, chunks(), nar_headers(extent), bench.counted.append)
        except RegistryError:
            return web.Response(status=404)

    app = web.Application()
    app[COUNTERS] = Counters()
    app.router.add_get("/nar", handle)
    # An idle connection is closed at once, so that a client sees where an answer ends.
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=0.01, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    bench = Bench(runner.addresses[0][1], app[COUNTERS])
    try:
        yield bench
    finally:
        await runner.cleanup()


class Piece(bytes):
    """Bytes that count how many of them are held."""

    held = 0

    def __new__(cls, content: bytes) -> Self:
        cls.held += 1
        return super().__new__(cls, content)

    def __del__(self) -> None:
        type(self).held -= 1


async def test_no_piece_is_held_after_it_was_sent() -> None:
    """Not the first either: of 128 streams, each would hold it until its end."""
    most_held = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal most_held
        for _ in range(5):
            yield Piece(b"piece")
            most_held = max(most_held, Piece.held)

    async with serving(chunks, 25) as bench:
        assert (await bench.ask(GET)).endswith(b"piece" * 5)
    assert most_held == 1


async def test_a_whole_nar() -> None:
    """Its length, leave to ask for parts, no encoding; an empty piece is no end."""
    async with serving(chunks_of(b"one", b"", b"two"), 6) as bench:
        answer = await bench.ask(GET)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"Content-Length: 6" in head
    assert b"Accept-Ranges: bytes" in head
    assert b"Content-Encoding" not in head
    assert body == b"onetwo"
    assert bench.counted == [3, 3]
    assert (bench.counters.nars, bench.counters.nars_cut) == (1, 0)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("pieces", "sent"),
    [
        ((b"one", RegistryError("the registry died")), b"one"),
        ((b"", RegistryError("the registry died")), b""),
        ((b"one", RuntimeError("a bug")), b"one"),
        ((b"one", ConnectionResetError("of the source, not of the client")), b"one"),
        ((b"one", TimeoutError()), b"one"),
        ((b"one", b"tw"), b"onetw"),
        ((b"one", b"two", b"three"), b"onetwo"),
        ((), b""),
    ],
)
async def test_what_breaks_off_is_cut(
    pieces: tuple[bytes | Exception, ...], sent: bytes, version: str
) -> None:
    """Whatever the reason: fewer bytes than announced, then the connection's end, and no second head.

    Where the head was not sent yet, none need be.
    """
    async with serving(chunks_of(*pieces), 9) as bench:
        # A second request waits behind: its answer must not become the rest of the first one's.
        answer = await bench.ask(GET * 2 if version == "1.1" else GET.replace(b"1.1", b"1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.") <= 1
    assert body == sent
    assert not head or b"Content-Length: 9" in head
    assert bench.counters.nars == 1


async def test_of_a_nar_of_unknown_length_no_end_is_sent() -> None:
    """The last chunk of the transfer coding would say that it was all."""
    async with serving(chunks_of(b"one", RegistryError("the upstream died")), None) as bench:
        answer = await bench.ask(GET)
    assert b"Transfer-Encoding: chunked" in answer
    assert answer.endswith(b"3\r\none\r\n")
    assert bench.counters.nars_cut == 1


async def test_a_failure_before_the_first_byte_is_the_callers_to_answer() -> None:
    """Nothing was sent: a plain 404 is still possible, and the connection goes on."""
    async with serving(chunks_of(RegistryError("down")), 9) as bench:
        answer = await bench.ask(GET * 2)
    assert answer.count(b"HTTP/1.1 404") == 2
    assert bench.counters.nars == 0


async def test_head_says_what_get_would() -> None:
    """And sends no bytes; the connection goes on."""
    async with serving(chunks_of(b"nine byte"), 9) as bench:
        answer = await bench.ask(GET.replace(b"GET", b"HEAD") * 2)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"Content-Length: 9") == 2
    assert answer.endswith(b"\r\n\r\n")


async def test_a_client_that_goes_away_ends_the_stream() -> None:
    """Nobody reads on for it; that is no event to warn of."""
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0)
                yield bytes(64 * 1024)
        finally:
            closed.set()

    async with serving(endless, 2**40) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench._port)
        writer.write(GET)
        await reader.read(1000)
        writer.transport.abort()
        await asyncio.wait_for(closed.wait(), 10)
    assert bench.counters.nars_cut == 0


def test_a_part_has_its_place_in_its_head() -> None:
    """206 and Content-Range; and Accept-Ranges, without which Nix would not ask for the next part."""
    headers = nar_headers(ByteRange(5, 10, 100))
    assert headers["Content-Range"] == "bytes 5-9/100"
    assert headers["Content-Length"] == "5"
    assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("method", "headers", "wanted"),
    [
        ("GET", {"Range": "bytes=1-"}, "bytes=1-"),
        ("GET", {}, None),
        ("HEAD", {"Range": "bytes=1-"}, None),
        ("GET", {"Range": "bytes=1-", "If-Range": '"etag"'}, None),
    ],
)
def test_where_a_range_counts(method: str, headers: dict[str, str], wanted: str | None) -> None:
    """RFC 9110, 14.2: only with GET; 13.1.5: not with a validator that is not ours."""
    from aiohttp.test_utils import make_mocked_request  # noqa: PLC0415  # only here

    assert wanted_range(make_mocked_request(method, "/nar", headers)) == wanted

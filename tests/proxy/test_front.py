"""The front and the library's own way are one: the same answers, in the same order, and the same ends."""

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.proxy import front, keys
from nixcache_oci.proxy.app import build_app
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front import AccessLog, Front, FrontServer
from nixcache_oci.proxy.head import HeadReader
from nixcache_oci.proxy.live_index import LiveIndex
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish

HIT, OTHER_HIT, MISS = (f"/{hash_part_of(seed)}.narinfo" for seed in ("one", "two", "absent"))
PLAIN = f"GET {HIT} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# Iterations of the event loop in which nothing comes any more: both ends run in it, and nothing here waits.
QUIET = 60


class Client:
    """The other end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.received = b""
        self.is_closed = False

    async def send(self, data: bytes) -> None:
        """Send, and let the server have just that before anything else."""
        with suppress(ConnectionError):  # it closed already; what it said before that is still to be read
            await asyncio.get_running_loop().sock_sendall(self._end, data)
        for _ in range(3):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Read until nothing comes any more."""
        quiet = 0
        while quiet < QUIET and not self.is_closed:
            await asyncio.sleep(0)
            quiet = 0 if self.read() else quiet + 1

    def read(self) -> bool:
        """Read what is there; tells whether anything was."""
        try:
            data = self._end.recv(2**20)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        self.is_closed = not data
        self.received += data
        return True

    async def expect(self, count: int) -> bytes:
        """Read until so many answers are there."""
        async with asyncio.timeout(30):
            while self.received.count(b"HTTP/1.1 ") < count and not self.is_closed:
                if not self.read():
                    await asyncio.sleep(0.001)
        return self.received

    async def expect_end(self) -> bytes:
        """Read until the server ends the connection."""
        async with asyncio.timeout(30):
            while not self.is_closed:
                if not self.read():
                    await asyncio.sleep(0.001)
        return self.received


class Bench:
    """A proxy's application, with a front and without."""

    def __init__(self, app: web.Application, runner: web.AppRunner, gate: asyncio.Event) -> None:
        assert runner.server is not None
        self.app = app
        self.library = runner.server
        self.front = FrontServer(runner.server, HeadReader(app[keys.HOST_GUARD].allows), app[keys.HITS])
        self.gate = gate
        self.connections: list[Front] = []

    @asynccontextmanager
    async def connect(self, *, with_front: bool = True) -> AsyncIterator[Client]:
        factory: Callable[[], asyncio.Protocol] = self.front if with_front else self.library
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(factory, theirs)
            if isinstance(protocol, Front):
                self.connections.append(protocol)
            try:
                yield Client(ours)
            finally:
                if not transport.is_closing():
                    transport.abort()
                await asyncio.sleep(0)


@asynccontextmanager
async def make_bench(folder: Path, *, library_idle_seconds: float = 3630) -> AsyncIterator[Bench]:
    repository, counters = Layout(folder / "cache"), Counters()
    index = LiveIndex(repository, IndexFolder(folder / "index", repository.name), (), 300, counters)
    config = ProxyConfig(
        listen="127.0.0.1",
        port=0,
        upstreams=(),
        index_ttl_seconds=300,
        index_dir=folder / "index",
        priority=30,
        store_dir="/nix/store",
        upstream_nars="stream",
        hosts=frozenset(),
        public_keys=(),
    )
    await index.refresh(thoroughly=True)
    app = build_app(config, repository, index, Upstreams([]), counters)
    runner = web.AppRunner(
        app,
        access_log=logging.getLogger("nixcache_oci.proxy.server"),
        access_log_class=AccessLog,
        shutdown_timeout=0.1,
        keepalive_timeout=library_idle_seconds,
    )

    gate = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="slow\n")

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000000"})
        await response.prepare(request)
        assert request.transport is not None
        while not request.transport.get_write_buffer_size():
            request.transport.write(bytes(1024))
        request.transport.close()
        return response

    app.router.add_get("/slow", slow)
    app.router.add_get("/cut", cut)
    await runner.setup()
    try:
        yield Bench(app, runner, gate)
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    asyncio.run(publish(Layout(folder / "cache"), [store_object("one"), store_object("two")]))
    return folder


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with make_bench(folder) as bench:
        yield bench


FIELDS = (
    b"Host: localhost\r\n",
    b"hOST:127.0.0.1:37515\t\r\n",
    b"Host: evil.example\r\n",
    b"Host:\r\n",
    b"User-Agent: curl/7.88.1 Nix/2.8.0\r\n",
    b"Accept: */*\r\n",
    b"Accept-Encoding: deflate, gzip, br, zstd\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: keep-alive, x\r\n",
    b"Range: bytes=1-2\r\n",
    b"If-None-Match: *\r\n",
    b"Authorization: Basic eA==\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Transfer-Encoding: chunked, x\r\n",
    b"Upgrade: h2c\r\n",
    b"X: " + b"y" * 5000 + b"\r\n",
    b"X: " + b"y" * 9000 + b"\r\n",
    b"X: \xff\r\n",
    b"X: \x00\r\n",
    b"X : y\r\n",
    b"X: folded\r\n here\r\n",
    b"no colon\r\n",
    b"X: y\n",
    b": z\r\n",
    b"X-" + b"y\r\nX-".join([b"%d: z" % number for number in range(150)]) + b"\r\n",
)
TARGETS = (
    HIT,
    OTHER_HIT,
    MISS,
    HIT + "?query",
    HIT.upper(),
    "/e" + HIT[2:],
    "/%61" + HIT[2:],
    f"http://evil.example{HIT}",
    f"http://localhost{HIT}",
    f"/{HIT}",
    HIT[1:],
    "/health",
    "/nix-cache-info",
    "/nowhere",
    "/" + "x" * 9000,
    "*",
    "/\u00e9",
)
plain = st.builds(
    lambda method, target, field: (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n".encode() + field + b"\r\n"
    ),
    st.sampled_from(["GET", "HEAD"]),
    st.sampled_from([HIT, OTHER_HIT, MISS]),
    st.sampled_from([b"", *FIELDS[4:8]]),
)
odd = st.builds(
    lambda before, method, target, version, fields, body: (
        before + f"{method} {target} {version}\r\n".encode() + b"".join(fields) + b"\r\n" + body
    ),
    st.sampled_from([b"", b"", b"", b"\r\n", b"\n"]),
    st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "get", "G@T", "OPTIONS", "CONNECT"]),
    st.sampled_from(TARGETS),
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", ""]),
    st.lists(st.sampled_from(FIELDS), max_size=4),
    st.just(b""),
)
with_body = st.sampled_from(
    [
        f"POST {HIT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PLAIN)}\r\n\r\n".encode() + PLAIN,
        f"GET {HIT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PLAIN)}\r\n\r\n".encode() + PLAIN,
        f"GET {HIT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"3\r\nabc\r\n0\r\n\r\n",
        f"GET {HIT} HTTP/1.1\nHost: localhost\n\n".encode(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ]
)
conversation = st.lists(st.one_of(plain, plain, plain, odd, with_body), min_size=1, max_size=6)


@given(requests=conversation, cuts=st.lists(st.integers(0, 2000), max_size=8), is_bytewise=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_both_ways_answer_alike(
    bench: Bench, requests: list[bytes], cuts: list[int], is_bytewise: bool
) -> None:
    """The same bytes, however they are cut, get the same answers but for Date, and the same end.

    The library is given one request after the other, up to the one that ends the connection, or that would
    have another protocol. That one comes in a piece of its own: the library forgets the requests that it got
    in one piece with a malformed one, or behind one for another protocol.
    """
    counters = bench.app[keys.COUNTERS]
    taken: list[bytes] = []
    async with bench.connect(with_front=False) as client:
        for request in [*requests, LAST]:
            if client.is_closed or (taken and b"upgrade:" in taken[-1].lower()):
                break
            taken.append(request)
            await client.send(request)
            await client.settle()
    expected = (_comparable(client.received), client.is_closed)
    expected_counts, counters.hits, counters.misses = (counters.hits, counters.misses), 0, 0
    sent = b"".join(taken)
    places = range(len(sent)) if is_bytewise and len(sent) < 1500 else cuts
    async with bench.connect() as client:
        for piece in _cut(sent, sorted({*places, len(sent) - len(taken[-1])})):
            await client.send(piece)
        await client.settle()
    counts, counters.hits, counters.misses = (counters.hits, counters.misses), 0, 0
    assert (_comparable(client.received), client.is_closed) == expected
    assert counts == expected_counts


def _cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *(place for place in places if 0 < place < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


def _comparable(received: bytes) -> bytes:
    # What is wrong with a request, the library says with the bytes that it had by then.
    refusal = re.search(rb"HTTP/1.[01] 400 .*", received, re.DOTALL)
    if refusal is not None:
        received = received[: refusal.start()] + b"400"
    return re.sub(rb"Date: [^\r]*", b"Date:", received)


async def test_answers_keep_the_order_of_their_requests(bench: Bench) -> None:
    """A hit behind a request that takes its time waits for its turn, as does what is begun."""
    slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with bench.connect() as client:
        await client.send(PLAIN + slow + PLAIN + slow + PLAIN + PLAIN[:20])
        await client.settle()
        assert client.received.count(b"HTTP/1.1 200") == 1
        bench.gate.set()
        await client.send(PLAIN[20:] + LAST)
        received = await client.expect_end()
    kinds = re.findall(rb"(StorePath|slow\n|ok\n)", received)
    assert kinds == [b"StorePath", b"slow\n", b"StorePath", b"slow\n", b"StorePath", b"StorePath", b"ok\n"]


async def test_nothing_follows_an_answer_that_was_cut(bench: Bench) -> None:
    """A narinfo would become the rest of the NAR."""
    async with bench.connect() as client:
        await client.send(b"GET /cut HTTP/1.1\r\nHost: localhost\r\n\r\n" + PLAIN)
        received = await client.expect_end()
    assert received.endswith(bytes(1024))


async def test_nothing_follows_the_last_answer(bench: Bench) -> None:
    """What a client sends behind ``Connection: close`` is no request any more."""
    async with bench.connect() as client:
        await client.send(PLAIN + LAST + PLAIN)
        received = await client.expect_end()
    assert received.count(b"HTTP/1.1 ") == 2


async def test_a_head_in_pieces_costs_the_connection_nothing(bench: Bench) -> None:
    """The library answers it, and then it is the front's turn again."""
    async with bench.connect() as client:
        for number in range(len(PLAIN)):
            await client.send(PLAIN[number : number + 1])
        await client.expect(1)
        await client.settle()
        assert [connection._state.value for connection in bench.connections] == ["ours"]


async def test_a_client_that_sends_ahead_without_end_is_made_to_wait(bench: Bench) -> None:
    """Neither requests behind a slow one nor answers that nobody reads may fill the memory."""
    slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with bench.connect() as client:
        await client.send(slow)
        sending = asyncio.create_task(client.send(PLAIN * 20_000 + LAST))
        await _let_run()
        [connection] = bench.connections
        assert not sending.done()
        assert len(connection._ahead) < 2**20
        bench.gate.set()
        await _let_run()
        assert not sending.done()
        assert connection._transport.get_write_buffer_size() < 2**20
        received = await client.expect_end()
        await sending
    assert received.count(b"StorePath: ") == 20_000
    assert received.endswith(b"ok\n")


async def _let_run() -> None:
    for _ in range(300):
        await asyncio.sleep(0)


async def test_one_client_cannot_hold_up_the_others(bench: Bench) -> None:
    """A thousand requests in one piece are answered in turns."""
    async with bench.connect() as greedy, bench.connect() as modest:
        await asyncio.get_running_loop().sock_sendall(greedy._end, PLAIN * 1000)
        await asyncio.get_running_loop().sock_sendall(modest._end, PLAIN)
        await modest.expect(1)
        greedy.read()
        assert greedy.received.count(b"HTTP/1.1 ") < 1000
        await greedy.expect(1000)


async def test_a_get_fetches_ahead_and_a_head_does_not(bench: Bench) -> None:
    """As the library's way does: the client asks for the pack next."""
    counters = bench.app[keys.COUNTERS]
    async with bench.connect() as client:
        await client.send(PLAIN.replace(b"GET", b"HEAD"))
        await client.expect(1)
        assert counters.packs_fetched_ahead == 0
        await client.send(PLAIN)
        await client.expect(2)
        assert counters.packs_fetched_ahead == 1
    assert counters.hits == 2


async def test_a_bug_in_a_look_up_is_the_librarys_to_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """404, and logged whole: an exception here would cut the connection."""
    monkeypatch.setattr("nixcache_oci.cache.catalog.row_key", None)
    async with bench.connect() as client:
        await client.send(PLAIN)
        assert (await client.expect(1)).startswith(b"HTTP/1.1 404 ")
    assert [record.message for record in caplog.records if record.exc_info] == ["unexpected error"]


@pytest.mark.parametrize("with_front", [True, False])
async def test_both_ways_log_alike(
    folder: Path, caplog: pytest.LogCaptureFixture, *, with_front: bool
) -> None:
    """At debug, each answer is a line."""
    caplog.set_level(logging.DEBUG, "nixcache_oci")
    async with make_bench(folder) as bench, bench.connect(with_front=with_front) as client:
        await client.send(PLAIN)
        await client.expect(1)
    [record] = [record for record in caplog.records if record.message == "answered"]
    assert vars(record)["fields"] == {"method": "GET", "path": HIT, "status": 200}


async def test_an_idle_connection_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that began a request; one that waits for its answer stays."""
    monkeypatch.setattr(front, "_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(front, "IDLE_SECONDS", 0.05)
    async with bench.connect() as answered, bench.connect() as begun, bench.connect() as waiting:
        await answered.send(PLAIN)
        await begun.send(PLAIN[:30])
        await waiting.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await answered.expect_end()).startswith(b"HTTP/1.1 200 ")
        assert await begun.expect_end() == b""
        bench.gate.set()
        assert (await waiting.expect(1)).startswith(b"HTTP/1.1 200 ")
        await waiting.expect_end()


async def test_the_librarys_own_timer_ends_no_connection_that_is_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of the requests that were answered before they came to it."""
    monkeypatch.setattr(front, "_CHECK_SECONDS", 0.01)
    async with make_bench(folder, library_idle_seconds=0.1) as bench, bench.connect() as client:
        await client.send(MISS.join(["GET ", " HTTP/1.1\r\nHost: localhost\r\n\r\n"]).encode())
        for number in range(2, 30):
            await asyncio.sleep(0.01)
            await client.send(PLAIN)
            await client.expect(number)
    assert not client.is_closed


async def test_a_client_that_goes_away_takes_its_request_with_it(bench: Bench) -> None:
    """The library hears of the end of the connection."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(bench.connect())
        await client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert len(bench.library.connections) == 1
    bench.gate.set()
    await _let_run()
    assert bench.library.connections == []

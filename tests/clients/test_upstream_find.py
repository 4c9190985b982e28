"""Look-ups against real upstreams that have it, have it not, or misbehave."""

import asyncio
import gzip
import time

import aiohttp
import brotli
import pytest
import zstandard
from aiohttp import web

from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import IDLE_SECONDS
from nixcache_oci.clients.upstream.peer import MOST_LOOK_UPS, BreakerState, UpstreamLoad
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.store_path import HashPart
from tests.clients.test_content_coding import CODINGS
from tests.support.process import until
from tests.support.upstream_server import (
    HASH_PART,
    Asked,
    Handler,
    answering,
    asking,
    narinfo_text,
    refusing,
    saying,
    serve,
    silent,
    talk,
    unreachable,
)

# Both transports hold these rules.
pytestmark = pytest.mark.usefixtures("_transport")

OTHER = HashPart("z" * 32)


SIGNER = UrlSigner(bytes(32))


async def test_a_hit_is_rewritten_and_counted() -> None:
    """Clients get a URL that leads through here; an upstream that is listed twice is asked once."""
    asked: list[Asked] = []
    hit = answering(text=narinfo_text(), asked=asked)
    async with serve(hit) as url, asking(f"{url}/base", f"{url}/base/", signer=SIGNER) as upstreams:
        narinfo = await upstreams.find(HASH_PART)
        [health] = upstreams.health()
    assert narinfo is not None
    key = parse_upstream(health.url).key
    assert narinfo.url == f"upstream/{key}/{SIGNER.sign(key, 'nar/hello.nar.zst', '')}"
    [one] = asked
    assert (one.path, one.headers["Accept-Encoding"]) == (f"/base/{HASH_PART}.narinfo", "identity")
    assert (health.hits, health.misses, health.failures, health.state) == (1, 0, 0, BreakerState.CLOSED)


@pytest.mark.parametrize("status", [404, 403, 410])
async def test_a_miss_is_what_nix_takes_for_one(status: int) -> None:
    """Storage without list permission says 403. A closure of misses does not cost a connection each."""
    asked: list[Asked] = []
    miss = answering(status=status, text="no" * 1000, asked=asked)
    async with serve(miss) as url, asking(url) as upstreams, asking() as nobody:
        for _ in range(5):
            assert await upstreams.find(HASH_PART) is None
        [health] = upstreams.health()
        assert await nobody.find(HASH_PART) is None  # no upstream is a choice
    assert (health.misses, len(asked), len({one.peer for one in asked})) == (5, 5, 1)


async def test_the_first_hit_ends_the_others() -> None:
    """A slow upstream does not hold up what a quick one has, and is not blamed."""
    async with (
        serve(answering(text=narinfo_text())) as quick,
        talk(silent) as slow,
        asking(slow, quick) as upstreams,
    ):
        async with asyncio.timeout(2):
            for _ in range(4):
                assert await upstreams.find(HASH_PART) is not None
        assert [health.failures for health in upstreams.health()] == [0, 0]


MISS, HIT = answering(status=404), answering(text=narinfo_text(), seconds=0.1)
FOREIGN = answering(text=narinfo_text().replace("/nix/store/", "/gnu/store/"))


@pytest.mark.parametrize(
    ("first", "second", "is_hit"),
    [
        (MISS, HIT, True),
        (MISS, answering(status=403, seconds=0.05), False),
        (None, HIT, True),
        (FOREIGN, HIT, True),
        (FOREIGN, MISS, False),
    ],
    ids=["a miss, a slow hit", "two misses", "nobody, a hit", "another store dir, a hit", "and a miss"],
)
async def test_a_miss_is_what_every_upstream_says(
    first: Handler | None, second: Handler, *, is_hit: bool
) -> None:
    """Not what the first one says; one's trouble is not another's; what Nix would refuse is not there."""
    async with (
        serve(first or MISS) as quick,
        serve(second) as slow,
        asking(quick if first else refusing(), slow, store_dir="/nix/store") as upstreams,
    ):
        found = await upstreams.find(HASH_PART)
        assert (found is not None) == is_hit
        assert found is None or found.store_path.store_dir == "/nix/store"
        assert upstreams.health()[0].failures == (first is None)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        *((500, ""), (502, narinfo_text()), (503, ""), (429, ""), (401, ""), (400, ""), (204, "")),
        *((200, ""), (200, "<html>Please log in</html>"), (200, narinfo_text() + "StorePath")),
        *((200, narinfo_text(OTHER)), (200, narinfo_text(url="nar/../../etc/shadow"))),
        (200, "x" * (1024 * 1024 + 1)),
    ],
)
async def test_any_other_answer_is_unknown(status: int, text: str) -> None:
    """A client remembers a "no" for an hour, so nobody says it who does not know."""
    async with (
        serve(answering(status=404)) as missing,
        serve(answering(status=status, text=text)) as bad,
        asking(missing, bad) as upstreams,
    ):
        with pytest.raises(UpstreamError, match="upstream http"):
            await upstreams.find(HASH_PART)


async def test_an_answer_without_end_is_not_read_to_the_end() -> None:
    """A narinfo is small; a mebibyte is the most that is read of anything else."""
    endless = saying(b"HTTP/1.1 200 OK\r\n\r\n", again=[bytes(65536)])
    async with talk(endless) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError, match="over 1048576 bytes"):
            await upstreams.find(HASH_PART)


@pytest.mark.parametrize("coding", CODINGS)
async def test_compressed_narinfos_are_read(coding: str) -> None:
    """Nix can store narinfos compressed, and object storage then sends them so, asked or not."""
    name, compress = CODINGS[coding]
    packed = answering(body=compress(narinfo_text().encode()), headers={"Content-Encoding": name})
    async with serve(packed) as url, asking(url) as upstreams:
        assert await upstreams.find(HASH_PART) is not None


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"x" * (64 * 1024 * 1024), 1)),
        ("gzip", gzip.compress(narinfo_text().encode())[:-9]),
        ("gzip", b"not gzip"),
        ("br", brotli.compress(bytes(64 * 1024 * 1024), quality=1)),
        ("zstd", zstandard.compress(b"x" * (64 * 1024 * 1024))),
        ("br", b"anything"),
        ("compress", b"anything"),
    ],
    ids=["bomb", "cut", "garbage", "br bomb", "zstd bomb", "br garbage", "unknown"],
)
async def test_compression_that_cannot_be_trusted_is_unknown(encoding: str, body: bytes) -> None:
    """A narinfo is small; what inflates without end is not one."""
    packed = answering(body=body, headers={"Content-Encoding": encoding})
    async with serve(packed) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)


async def test_a_dead_port_costs_one_connection() -> None:
    """After a refused connection nobody asks until the pause is over; then one does, and all is well."""
    now = 0.0
    asked: list[Asked] = []
    dead = refusing()
    async with asking(dead, clock=lambda: now) as upstreams:
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await upstreams.find(HASH_PART)
        [health] = upstreams.health()
        assert (health.state, health.failures, health.retry_seconds) == (BreakerState.OPEN, 1, 30.0)
        assert "no connection to" in health.last_error
        hit = answering(text=narinfo_text(), asked=asked)
        async with serve(hit, port=int(dead.rpartition(":")[2])):
            with pytest.raises(UpstreamError, match="not asked"):
                await upstreams.find(HASH_PART)
            assert asked == []
            now = 30.0
            assert await upstreams.find(HASH_PART) is not None
            assert upstreams.health()[0].state == "closed"


async def test_tls_that_fails_is_a_failure_to_connect() -> None:
    """Whatever keeps a connection from coming about is dealt with alike."""
    async with serve(answering()) as url, asking(url.replace("http:", "https:")) as upstreams:
        with pytest.raises(UpstreamError, match="no connection to"):
            await upstreams.find(HASH_PART)
        assert upstreams.health()[0].state == "open"


@pytest.mark.parametrize("fault", ["status", "garbage", "reset", "silence"])
async def test_a_fault_of_one_path_is_no_fault_of_its_upstream(fault: str) -> None:
    """However many paths are answered badly, cut or not at all, the others are asked for and found."""

    async def cache(request: web.Request) -> web.Response:
        if HASH_PART in request.path or "nix-cache-info" in request.path:
            return web.Response(text=narinfo_text())
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
        if fault == "silence":
            await asyncio.sleep(60)
        return web.Response(status=500 if fault == "status" else 200, text="no narinfo\n")

    async with serve(cache) as url, asking(url, answer_seconds=0.3) as upstreams:
        odd = [HashPart(letter * 32) for letter in "0123456789"]
        found = await asyncio.gather(*map(upstreams.find, odd), return_exceptions=True)
        assert all(isinstance(one, UpstreamError) for one in found)
        for _ in range(3):
            assert await upstreams.find(HASH_PART) is not None
        await asyncio.sleep(0)
        assert upstreams.health()[0].state == "closed"


async def test_an_upstream_that_fell_silent_is_left_alone() -> None:
    """Where nothing is answered, nobody waits again; after a cancelled probe the next request probes."""
    now = 0.0
    answers = False

    async def cache(_request: web.Request) -> web.Response:
        if not answers:
            await asyncio.sleep(60)
        return web.Response(text=narinfo_text())

    async with serve(cache) as url, asking(url, clock=lambda: now, answer_seconds=0.1) as upstreams:
        with pytest.raises(UpstreamError, match="no answer in time"):
            await upstreams.find(HASH_PART)
        await until(lambda: upstreams.health()[0].state == "open")
        with pytest.raises(UpstreamError, match="not asked again so soon"):
            await upstreams.find(HASH_PART)
        now = 30.0
        probe = asyncio.create_task(upstreams.find(HASH_PART))
        await until(lambda: upstreams.health()[0].state == "half-open")
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        answers = True
        assert await upstreams.find(HASH_PART) is not None


async def test_whoever_waits_for_a_dead_upstream_is_released_together() -> None:
    """A dead upstream costs its connect time-out once: later requests wait for the rest of it only."""
    with unreachable() as url:
        async with asking(url, connect_seconds=1) as upstreams:
            first = asyncio.create_task(upstreams.find(HASH_PART))
            await asyncio.sleep(0.3)
            later = [asyncio.create_task(upstreams.find(HASH_PART)) for _ in range(5)]
            await asyncio.wait([first])
            for _ in range(200):  # turns of the event loop: a time-out of their own would take time
                await asyncio.sleep(0)
            assert all(task.done() for task in later)
            outcomes = await asyncio.gather(first, *later, return_exceptions=True)
            assert {repr(outcome) for outcome in outcomes} == {
                repr(UpstreamError(f"upstream {url}/: no connection in time"))
            }
            assert upstreams.health()[0].retry_seconds is not None


async def test_whoever_is_connected_is_not_released() -> None:
    """A 404 in haste would be remembered: a request that may still be answered goes on."""
    connected = asyncio.Event()
    answer = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        connected.set()
        await answer.wait()
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asking(url) as upstreams:
        patient = asyncio.create_task(upstreams.find(HASH_PART))
        await connected.wait()
        server.close()  # from now on connections are refused
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)
        assert upstreams.health()[0].state == "open"
        answer.set()
        assert await patient is None


async def test_the_environments_proxy_is_used_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Networks that reach the world through a proxy are served; loopback never goes through one."""
    seen: list[Asked] = []
    async with serve(answering(text=narinfo_text(), asked=seen)) as proxy, serve(MISS) as local:
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//user:pass@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with asking("http://cache.invalid/", local) as upstreams:
            assert await upstreams.find(HASH_PART) is not None
    assert [(one.path, one.headers["Proxy-Authorization"]) for one in seen] == [
        (f"http://cache.invalid/{HASH_PART}.narinfo", "Basic dXNlcjpwYXNz")
    ]


async def test_one_upstream_is_asked_for_few_narinfos_at_once() -> None:
    """Further ones wait for it, and none of them fails."""
    at_once: list[int] = []
    under_way = 0
    full = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal under_way
        under_way += 1
        at_once.append(under_way)
        if under_way == MOST_LOOK_UPS:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        under_way -= 1
        return web.Response(status=404)

    async with serve(answer) as url, asking(url) as upstreams:
        found = await asyncio.gather(*(upstreams.find(HASH_PART) for _ in range(3 * MOST_LOOK_UPS)))
    assert found == [None] * 3 * MOST_LOOK_UPS
    assert max(at_once) == MOST_LOOK_UPS


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [(429, {}, 60), (503, {}, 60), (429, {"Retry-After": "7"}, 7), (429, {"Retry-After": "99999"}, 3600)],
)
async def test_nothing_is_fetched_ahead_after_a_refusal(
    status: int, headers: dict[str, str], seconds: float
) -> None:
    """For as long as it asks, and not for ever; whoever's request it was."""
    now = 0.0
    async with (
        serve(answering(status=status, headers=headers)) as url,
        asking(url, clock=lambda: now) as upstreams,
    ):
        key = parse_upstream(url).key
        assert upstreams.load(key) == UpstreamLoad(0, 0)
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)
        now = seconds - 0.1
        assert upstreams.load(key) is None
        now = seconds
        assert upstreams.load(key) is not None


async def test_nothing_is_fetched_ahead_of_an_upstream_that_is_not_there() -> None:
    """Nor of one that nobody configured."""
    url = refusing()
    async with asking(url) as upstreams:
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)
        assert upstreams.load(parse_upstream(url).key) is None
        assert upstreams.load("0" * 16) is None


async def test_a_burst_needs_no_new_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept for longer than a pause between two substitutions."""
    asked: list[Asked] = []
    async with serve(answering(status=404, asked=asked)) as url, asking(url) as upstreams:
        await upstreams.find(HASH_PART)
        monkeypatch.setattr(aiohttp.connector, "monotonic", lambda: time.monotonic() + IDLE_SECONDS - 1)
        await upstreams.find(HASH_PART)
    assert asked[0].peer == asked[1].peer

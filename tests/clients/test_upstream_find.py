"""Look-ups against real upstreams that have it, have it not, or misbehave."""

import asyncio
import gzip
import time

import brotli
import pytest
import zstandard
from aiohttp import web

from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.peer import BreakerState
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.store_path import HashPart
from tests.clients.test_content_coding import CODINGS
from tests.support.upstream_server import (
    HASH_PART,
    answering,
    asking,
    narinfo_text,
    refusing,
    serve,
    silent,
    talk,
    unreachable,
)

OTHER = HashPart("z" * 32)


async def opened(upstreams: Upstreams) -> None:
    """Wait until the first upstream is left alone."""
    async with asyncio.timeout(5):
        while upstreams.health()[0].state != "open":  # noqa: ASYNC110  # the client has no event for it
            await asyncio.sleep(0.01)


SIGNER = UrlSigner(bytes(32))


async def test_a_hit_is_rewritten_and_counted() -> None:
    """Clients get a URL that leads through here."""
    asked: list[str] = []

    async def cache(request: web.Request) -> web.Response:
        asked.append(request.path)
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(text=narinfo_text())

    async with serve(cache) as url, asking(f"{url}/base", signer=SIGNER) as upstreams:
        narinfo = await upstreams.find(HASH_PART)
        [health] = upstreams.health()
    assert narinfo is not None
    key = parse_upstream(health.url).key
    assert narinfo.url == f"upstream/{key}/{SIGNER.sign(key, 'nar/hello.nar.zst', '')}"
    assert asked == [f"/base/{HASH_PART}.narinfo"]
    assert (health.hits, health.misses, health.failures, health.state) == (1, 0, 0, BreakerState.CLOSED)


@pytest.mark.parametrize("status", [404, 403, 410])
async def test_a_miss_is_what_nix_takes_for_one(status: int) -> None:
    """Storage without list permission says 403 for what it has not."""
    async with serve(answering(status=status, text="no")) as url, asking(url) as upstreams:
        assert await upstreams.find(HASH_PART) is None
        [health] = upstreams.health()
    assert health.misses == 1


async def test_without_upstreams_everything_is_a_miss() -> None:
    """No upstream is a choice."""
    async with asking() as upstreams:
        assert await upstreams.find(HASH_PART) is None


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


async def test_a_fast_miss_does_not_beat_a_slow_hit() -> None:
    """A miss is what every upstream says, not what the first one says."""
    async with (
        serve(answering(status=404)) as quick,
        serve(answering(text=narinfo_text(), seconds=0.1)) as slow,
        asking(quick, slow) as upstreams,
    ):
        assert await upstreams.find(HASH_PART) is not None


async def test_misses_of_everyone_are_a_miss() -> None:
    """Only then."""
    async with (
        serve(answering(status=404)) as first,
        serve(answering(status=403, seconds=0.05)) as second,
        asking(first, second) as upstreams,
    ):
        assert await upstreams.find(HASH_PART) is None


async def test_a_hit_beside_a_dead_upstream_is_a_hit() -> None:
    """One upstream's trouble is not another's."""
    async with (
        serve(answering(text=narinfo_text(), seconds=0.05)) as url,
        asking(refusing(), url) as upstreams,
    ):
        assert await upstreams.find(HASH_PART) is not None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, ""),
        (502, narinfo_text()),
        (503, ""),
        (429, ""),
        (401, ""),
        (400, ""),
        (204, ""),
        (200, ""),
        (200, "<html>Please log in</html>"),
        (200, narinfo_text() + "StorePath"),
        (200, narinfo_text(OTHER)),
        (200, narinfo_text(url="nar/../../etc/shadow")),
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

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with talk(endless) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError, match="over 1048576 bytes"):
            await upstreams.find(HASH_PART)


async def test_tls_that_fails_is_a_failure_to_connect() -> None:
    """Whatever keeps a connection from coming about is dealt with alike."""
    async with serve(answering()) as url, asking(url.replace("http:", "https:")) as upstreams:
        with pytest.raises(UpstreamError, match="no connection to"):
            await upstreams.find(HASH_PART)
        assert upstreams.health()[0].state == "open"


@pytest.mark.parametrize("coding", CODINGS)
async def test_compressed_narinfos_are_read(coding: str) -> None:
    """Nix can store narinfos compressed, and object storage then sends them so, asked or not."""
    name, compress = CODINGS[coding]
    packed = compress(narinfo_text().encode())

    async def cache(_request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": name})

    async with serve(cache) as url, asking(url) as upstreams:
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

    async def cache(_request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    async with serve(cache) as url, asking(url) as upstreams:
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)


async def test_connections_are_kept_also_after_a_miss() -> None:
    """A closure of 500 misses does not cost 500 connections."""
    peers: set[object] = set()

    async def cache(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(status=404, text="404" * 1000)

    async with serve(cache) as url, asking(url) as upstreams:
        for _ in range(5):
            assert await upstreams.find(HASH_PART) is None
    assert len(peers) == 1


async def test_a_dead_port_costs_one_connection() -> None:
    """After a refused connection nobody asks until the pause is over; then one does, and all is well."""
    now = 0.0
    connections = 0

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    dead = refusing()
    async with asking(dead, clock=lambda: now) as upstreams:
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await upstreams.find(HASH_PART)
        [health] = upstreams.health()
        assert (health.state, health.failures, health.retry_seconds) == (BreakerState.OPEN, 1, 30.0)
        assert "no connection to" in health.last_error

        server = await asyncio.start_server(refuse, "127.0.0.1", int(dead.rpartition(":")[2]))
        async with server:
            with pytest.raises(UpstreamError, match="not asked"):
                await upstreams.find(HASH_PART)
            assert connections == 0
            now = 30.0
            with pytest.raises(UpstreamError):
                await upstreams.find(HASH_PART)
            assert connections > 0


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
    """Where nothing else is answered either, the silence is the upstream's, and nobody waits again."""
    async with talk(silent) as url, asking(url, answer_seconds=0.1) as upstreams:
        with pytest.raises(UpstreamError, match="no answer in time"):
            await upstreams.find(HASH_PART)
        await opened(upstreams)
        with pytest.raises(UpstreamError, match="not asked again so soon"):
            await upstreams.find(HASH_PART)


async def test_it_is_asked_again_when_it_is_back() -> None:
    """The first answer after the pause closes the breaker."""
    now = 0.0
    dead = refusing()
    async with asking(dead, clock=lambda: now) as upstreams:
        with pytest.raises(UpstreamError, match="no connection to"):
            await upstreams.find(HASH_PART)
        async with serve(answering(text=narinfo_text()), port=int(dead.rpartition(":")[2])):
            with pytest.raises(UpstreamError, match="not asked"):
                await upstreams.find(HASH_PART)
            now = 30.0
            assert await upstreams.find(HASH_PART) is not None
            assert upstreams.health()[0].state == "closed"


async def test_whoever_waits_for_a_dead_upstream_is_released_together() -> None:
    """A dead upstream costs its connect time-out once: later requests wait for the rest of it only."""
    with unreachable() as url:
        async with asking(url, connect_seconds=2) as upstreams:
            first = asyncio.create_task(upstreams.find(HASH_PART))
            await asyncio.sleep(1)
            later = [asyncio.create_task(upstreams.find(HASH_PART)) for _ in range(5)]
            await asyncio.wait([first])
            released = time.monotonic()
            outcomes = await asyncio.gather(first, *later, return_exceptions=True)
            # A time-out of their own would have ended a second after the first one's.
            assert time.monotonic() - released < 0.9
            assert [type(outcome) for outcome in outcomes] == [UpstreamError] * 6
            assert {str(outcome) for outcome in outcomes} == {f"upstream {url}/: no connection in time"}
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


async def test_a_client_that_hangs_up_while_probing_leaves_the_way_free() -> None:
    """A cancelled probe says nothing; the next request probes."""
    now = 0.0
    answers = False

    async def cache(_request: web.Request) -> web.Response:
        if not answers:
            await asyncio.sleep(60)
        return web.Response(text=narinfo_text())

    async with serve(cache) as url, asking(url, clock=lambda: now, answer_seconds=0.1) as upstreams:
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)
        await opened(upstreams)
        now = 30.0
        probe = asyncio.create_task(upstreams.find(HASH_PART))
        await asyncio.sleep(0.02)
        assert upstreams.health()[0].state == "half-open"
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        answers = True
        assert await upstreams.find(HASH_PART) is not None


async def test_a_url_listed_twice_is_one_upstream() -> None:
    """Nobody is asked twice for the same."""
    asked: list[str] = []

    async def cache(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=404)

    async with serve(cache) as url, asking(url, f"{url}/") as upstreams:
        assert await upstreams.find(HASH_PART) is None
    assert len(asked) == 1


async def test_the_environments_proxy_is_used_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Networks that reach the world through a proxy are served; loopback never goes through one."""
    seen: list[tuple[str, str | None]] = []

    async def proxy(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers.get("Proxy-Authorization")))
        return web.Response(text=narinfo_text())

    async with serve(proxy) as proxy_url, serve(answering(status=404)) as local:
        monkeypatch.setenv("http_proxy", proxy_url.replace("//", "//user:pass@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with asking("http://cache.invalid/", local) as upstreams:
            assert await upstreams.find(HASH_PART) is not None
    assert seen == [(f"http://cache.invalid/{HASH_PART}.narinfo", "Basic dXNlcjpwYXNz")]


async def test_a_path_of_another_store_dir_is_a_miss() -> None:
    """Nix would refuse it; it hides neither a hit nor a miss of another upstream."""
    foreign = narinfo_text().replace("/nix/store/", "/gnu/store/")
    async with (
        serve(answering(text=foreign)) as wrong,
        serve(answering(text=narinfo_text(), seconds=0.1)) as right,
    ):
        async with asking(wrong, right, store_dir="/nix/store") as upstreams:
            narinfo = await upstreams.find(HASH_PART)
            assert narinfo is not None
            assert narinfo.store_path.store_dir == "/nix/store"
        async with asking(wrong, store_dir="/nix/store") as upstreams:
            assert await upstreams.find(HASH_PART) is None
            assert upstreams.health()[0].failures == 0
        async with asking(wrong) as upstreams:
            assert await upstreams.find(HASH_PART) is not None

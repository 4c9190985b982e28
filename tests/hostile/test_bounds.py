"""Crowds of clients at twice each bound: the proxy stays small and quick, and says once what it did."""

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from nixcache_oci.cache.nar_url import MAX_PACKED_NAR_BYTES
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.nar_streams import MOST_STREAMS
from nixcache_oci.proxy.open_files import share_out
from nixcache_oci.proxy.refresh_coalescer import MOST_IN_A_ROW, WINDOW_SECONDS
from tests.hostile.raw_client import converse, listening
from tests.hostile.story import (
    MOST_ANSWER_SECONDS,
    MOST_BLOCKED_SECONDS,
    MOST_MEMORY_BYTES,
    check_well,
    url_of,
)
from tests.support.journey import push_with, put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.packs import publish_packs
from tests.support.proxy import ProxyProcess, WatchedProxy
from tests.support.registries import Ghcr
from tests.support.server_thread import ServerThread
from tests.support.upstream_server import narinfo_text

MIB = 1024 * 1024
HOST = b"Host: localhost\r\n"
FEW_FILES = 1024
BEGINNINGS = (
    *(b"", b"\r\n", b"G", b"GET /heal", b"GET /x HTTP/1.1\r\n", b"GET /x HTTP/1.1\r\nHost: loc"),
    b"POST /_refresh HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab",
)


@dataclass(slots=True)
class Watched:
    """A proxy, and what it took at its worst."""

    proxy: WatchedProxy
    bytes: int = 0
    seconds: float = 0.0

    def look(self) -> None:
        """Ask for ``/health`` over a new connection, and measure."""
        start = time.monotonic()
        assert self.proxy.ask("/health").body == b"ok\n"
        self.seconds = max(self.seconds, time.monotonic() - start)
        self.bytes = max(self.bytes, self.proxy.rss_bytes())

    def check(self) -> None:
        """It was small and quick all the time."""
        assert self.bytes < MOST_MEMORY_BYTES
        assert self.seconds < MOST_ANSWER_SECONDS
        assert self.proxy.worst_block_seconds() < MOST_BLOCKED_SECONDS


@contextmanager
def watched(folder: Path, settings: Mapping[str, str], most_files: int | None = None) -> Iterator[Watched]:
    """Run a proxy; at the end it was small and quick all the time, and works."""
    proxy = WatchedProxy(folder / "proxy", **settings)
    proxy.most_files = most_files
    with proxy:
        proxy.wait_ready()
        looking = Watched(proxy)
        looking.look()
        yield looking
        looking.look()
        check_well(proxy)
        looking.check()


def reader(proxy: ProxyProcess) -> socket.socket:
    """Connect, with buffers as small as can be had."""
    address, _, port = proxy.host.rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect((address, int(port)))
    return client


def send_what_goes(client: socket.socket, data: bytes) -> None:
    """Send until the proxy takes no more."""
    client.setblocking(False)
    with suppress(BlockingIOError, ConnectionError):
        while data:
            data = data[client.send(data) :]


def test_readers_of_nothing(ghcr: Ghcr, tmp_path: Path) -> None:
    """Twice as many as may stream: connections to the registry are bounded, and who reads has its turn.

    A refresh, and NARs that are new by then, are served meanwhile.
    """
    blob = os.urandom(24 * MIB)
    digest = Digest.of(blob)
    push_with(ghcr, lambda client: client.push_blob(digest, blob))
    put(ghcr, [store_object("small")])
    with watched(tmp_path, settings_of(ghcr, tmp_path)) as looking, ExitStack() as stack:
        proxy = looking.proxy
        request = f"GET /nar/{digest.hex}.nar.zst HTTP/1.1\r\n".encode() + HOST + b"\r\n"
        for number in range(2 * MOST_STREAMS):
            stack.enter_context(reader(proxy)).sendall(request)
            if number % 16 == 0:
                looking.look()
        put(ghcr, [store_object("later")])
        assert proxy.refresh()["refreshed"] is True
        assert proxy.ask(f"/{url_of(proxy, 'later')}").status == 200
        # Two more in line: the one that streams in the end is served whole.
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(proxy.ask, f"/nar/{digest.hex}.nar.zst")
            while not whole.done():
                looking.look()
                # One to the storage, and the one that was told where that is.
                assert outgoing(proxy) <= 2 * MOST_STREAMS + 16
                time.sleep(0.05)
        assert whole.result().body == blob
        assert proxy.log.count("as many NARs stream as may") == 1


def outgoing(proxy: ProxyProcess) -> int:
    """How many connections the proxy has that are none of a client."""
    own = int(proxy.host.rpartition(":")[2])
    found = psutil.Process(proxy.process.pid).net_connections()
    return sum(one.status == "ESTABLISHED" and one.laddr.port != own for one in found)


def test_half_heads(tmp_path: Path, ghcr: Ghcr) -> None:
    """More connections than there may be, none of which says anything whole: new ones are served at once.

    When they have gone, no file stays open.
    """
    put(ghcr, [store_object("small")])
    limit = share_out(FEW_FILES).connections
    with watched(tmp_path, settings_of(ghcr, tmp_path), FEW_FILES) as looking, ExitStack() as stack:
        before = psutil.Process(looking.proxy.process.pid).num_fds()
        for number in range(2 * limit):
            client = stack.enter_context(reader(looking.proxy))
            with suppress(ConnectionError):
                client.sendall(BEGINNINGS[number % len(BEGINNINGS)])
            if number % 50 == 0:
                looking.look()
        assert limit < psutil.Process(looking.proxy.process.pid).num_fds() + limit // 8
        assert psutil.Process(looking.proxy.process.pid).num_fds() < limit + 64
        assert "connections at their limit" in looking.proxy.log
        stack.close()
        looking.proxy.wait_until(lambda _: psutil.Process(looking.proxy.process.pid).num_fds() <= before + 1)


def test_small_nars_that_nobody_reads(tmp_path: Path) -> None:
    """Answers out of memory, over hundreds of connections: what waits is bounded in total."""
    cache = publish_packs(tmp_path / "slices", count=2, nar_bytes=MAX_PACKED_NAR_BYTES - 1024)
    lines = [f"GET {target} HTTP/1.1\r\n".encode() for target in cache.slices]
    requests = b"".join(line + HOST + b"\r\n" for line in lines) * 20
    with (
        WatchedProxy(tmp_path, NIXCACHE_REGISTRY=f"oci:{cache.folder / 'cache'}") as proxy,
        ExitStack() as stack,
    ):
        proxy.wait_ready()
        looking = Watched(proxy)
        before = [proxy.ask(target).body for target in cache.slices]
        for number in range(800):
            send_what_goes(stack.enter_context(reader(proxy)), requests)
            if number % 50 == 0:
                looking.look()
        assert [proxy.ask(target).body for target in cache.slices] == before
        looking.look()
        looking.check()
        assert "too much waits for clients that do not read" in proxy.log


@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_bodies_and_requests_ahead(tmp_path: Path, ghcr: Ghcr, method: bytes) -> None:
    """Nobody reads bodies; what comes with, or behind, a request that waits is bounded in total."""
    put(ghcr, [store_object("small")])
    body = random.Random(0).randbytes(MIB)
    head = (
        b"POST /_refresh HTTP/1.1\r\n"
        if method == b"POST"
        else b"GET /" + b"0" * 32 + b".narinfo HTTP/1.1\r\n"
    )
    length = b"Content-Length: %d\r\n\r\n" % (2**40)
    with watched(tmp_path, settings_of(ghcr, tmp_path)) as looking, ExitStack() as stack:
        for number in range(600):
            send_what_goes(stack.enter_context(reader(looking.proxy)), head + HOST + length + body)
            if number % 50 == 0:
                looking.look()


def test_a_flood_in_the_log(tmp_path: Path, ghcr: Ghcr) -> None:
    """Thousands of requests that each cause a line: few are written, and what the registry says is one."""
    put(ghcr, [store_object("small")])
    with watched(tmp_path, settings_of(ghcr, tmp_path)) as looking:
        proxy = looking.proxy
        start = len(proxy.log)
        for path in (b"nar/" + b"a" * 7000, b"nar/" + b"%01" * 2500, b"upstream/x/%0a" + b"b" * 7000):
            request = b"GET /" + path + b" HTTP/1.1\r\n" + HOST + b"\r\n"
            for _ in range(10):
                assert {answer.status for answer in converse(proxy.host, [request] * 50, answers=50)} == {404}
        for fields in (b"Host: evil.example\r\n\r\n", HOST + b"Sec-Fetch-Site: cross-site\r\n\r\n"):
            converse(proxy.host, [b"GET / HTTP/1.1\r\n" + fields] * 200, answers=200)
        assert len(proxy.log) - start < 40_000
        ghcr.server.deny("/blobs/", "no such right")
        assert proxy.ask(f"/nar/{'0' * 64}.nar.zst").status == 404
        assert "no such right" in proxy.log[start:]
    assert "more like this" in proxy.log  # at its end, all is counted that was left out


def test_refreshes_are_joined(tmp_path: Path, ghcr: Ghcr) -> None:
    """Any client can ask for one: a crowd costs two, and a row of them is paced; each sees what was there."""
    put(ghcr, [store_object("small")])
    with watched(tmp_path, settings_of(ghcr, tmp_path)) as looking:
        proxy = looking.proxy
        before = proxy.status()["counters"]["refreshes"]
        start = time.monotonic()
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda _: proxy.refresh(), range(40)))
        assert answers == [{"refreshed": True, "entries": 1}] * 40
        most = MOST_IN_A_ROW * (1 + (time.monotonic() - start) // WINDOW_SECONDS)
        assert proxy.status()["counters"]["refreshes"] - before <= most
        put(ghcr, [store_object("later")])
        assert proxy.refresh() == {"refreshed": True, "entries": 2}


def test_look_ups_at_upstreams_are_joined(tmp_path: Path) -> None:
    """Forty clients that want one path cost the upstream one request, and each has its answer."""
    known, asked, gate = hash_part_of("upstream"), list[str](), threading.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        await asyncio.to_thread(gate.wait)
        return web.Response(text=narinfo_text(known))

    server = ServerThread(answer)
    server.start()
    try:
        settings = {
            "NIXCACHE_REGISTRY": f"oci:{tmp_path}/none",
            "NIXCACHE_UPSTREAM": f"http://127.0.0.1:{server.ports[0]}",
        }
        with ProxyProcess(tmp_path / "proxy", **settings) as proxy, ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(proxy.ask, f"/{known}.narinfo") for _ in range(40)]
            while len(psutil.Process(proxy.process.pid).net_connections()) < 40:
                time.sleep(0.01)
            gate.set()
            assert {one.result().status for one in waiting} == {200}
    finally:
        server.stop()
    assert len(asked) < 5


def test_heads_of_upstream_nars(tmp_path: Path) -> None:
    """Each takes a connection to the upstream, which may answer late: as many as may stream are asked for."""
    asked, gate = list[str](), threading.Event()

    def say(connection: socket.socket) -> None:
        asked.append(connection.recv(65536).decode("latin-1"))
        gate.wait()

    with listening(say) as url, ExitStack() as stack:
        stack.callback(gate.set)
        settings = {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/none", "NIXCACHE_UPSTREAM": url}
        proxy = stack.enter_context(ProxyProcess(tmp_path / "proxy", **settings))
        proxy.wait_ready()
        key = parse_upstream(url).key
        for number in range(2 * MOST_STREAMS):
            request = f"HEAD /upstream/{key}/nar/{number:064x}.nar HTTP/1.1\r\n".encode() + HOST + b"\r\n"
            stack.enter_context(reader(proxy)).sendall(request)
        while len(asked) < MOST_STREAMS or ("others wait" not in proxy.log and len(asked) == MOST_STREAMS):
            time.sleep(0.01)
        # Asked behind all of them, and answered by the same loop.
        assert proxy.ask("/health").status == 200
        # Of those that were asked, the first may have been given up: not so many at once.
        assert outgoing(proxy) <= MOST_STREAMS

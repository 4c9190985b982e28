"""A proxy's application with a front and without, in this process, and a client that counts every byte."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.proxy import app_keys
from nixcache_oci.proxy.app import build_app
from nixcache_oci.proxy.cache_set import CacheSet
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front.aiohttp_protocol import protocol_factory
from nixcache_oci.proxy.front.connection import Front, FrontServer
from nixcache_oci.proxy.front.connections import IDLE_SECONDS
from nixcache_oci.proxy.front.request_head import HeadReader
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.memory import PackBudget

# Iterations of the event loop in which nothing comes any more: both ends run in it, and nothing here waits.
_QUIET: Final = 60


class Client:
    """The other end of a connection."""

    def __init__(self, end: socket.socket, packs: PackCache) -> None:
        self._end = end
        self._packs = packs
        self.received = b""
        self.is_closed = False

    async def send(self, data: bytes) -> None:
        """Send, and let the server have just that before anything else."""
        with suppress(ConnectionError):  # it closed already; what it said before that is still to be read
            await asyncio.get_running_loop().sock_sendall(self._end, data)
        for _ in range(3):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Read until nothing comes any more, and no pack is on its way."""
        quiet = 0
        while _downloads(self._packs) or (quiet < _QUIET and not self.is_closed):
            await asyncio.sleep(0)
            quiet = 0 if self.read() or _downloads(self._packs) else quiet + 1

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
        return await self._read_until(lambda: self.received.count(b"HTTP/1.1 ") >= count)

    async def expect_bytes(self, count: int) -> bytes:
        """Read until so many bytes are there."""
        return await self._read_until(lambda: len(self.received) >= count)

    async def expect_end(self) -> bytes:
        """Read until the server ends the connection."""
        return await self._read_until(lambda: False)

    async def _read_until(self, is_there: Callable[[], bool]) -> bytes:
        async with asyncio.timeout(30):
            while not is_there() and not self.is_closed:
                if not self.read():
                    await asyncio.sleep(0.001)
        return self.received


class Bench:
    """A proxy's application, with a front and without."""

    def __init__(
        self, app: web.Application, server: web.Server, gate: asyncio.Event, idle_seconds: float
    ) -> None:
        self.app = app
        self.server = server
        connections = app[app_keys.CONNECTIONS]
        self.library = protocol_factory(server, connections, idle_seconds=idle_seconds)
        reader = HeadReader(app[app_keys.HOST_GUARD].allows)
        self.front = FrontServer(self.library, reader, app[app_keys.FAST_PATH], connections)
        self.gate = gate
        [self.cache] = app[app_keys.CACHES].configured
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
                yield Client(ours, self.cache.packs)
            finally:
                if not transport.is_closing():
                    transport.abort()
                await asyncio.sleep(0)


def proxy_config(folder: Path, **changes: Any) -> ProxyConfig:  # noqa: ANN401  of any field
    """Make a configuration: a free port, no upstreams, no keys, and the index in ``folder``."""
    config = ProxyConfig(
        listen="127.0.0.1",
        port=0,
        upstreams=(),
        index_ttl_seconds=300,
        index_dir=folder / "index",
        pack_memory_bytes=2**28,
        priority=30,
        store_dir="/nix/store",
        upstream_nars="stream",
        hosts=frozenset(),
    )
    return replace(config, **changes)


def app_of(
    config: ProxyConfig, repository: Repository, index: LiveIndex, counters: Counters | None = None
) -> web.Application:
    """Make the application of one cache, without upstreams."""
    budget = PackBudget(config.pack_memory_bytes, most_in_transit=32)
    cache = OpenedCache(repository, index, counters or Counters(), budget)
    return build_app(config, CacheSet([cache], budget), Upstreams([]))


def open_cache(index: LiveIndex) -> OpenedCache:
    """Make a cache of an index."""
    return OpenedCache(index._repository, index, Counters(), PackBudget(2**28, most_in_transit=32))


async def read_index(folder: Path) -> LiveIndex:
    """Read the index of the cache in ``folder``; it may serve one bench after another."""
    repository = Layout(folder / "cache")
    index = LiveIndex(repository, IndexFolder(folder / "index", repository.name), (), 300, Counters())
    await index.refresh(thoroughly=True)
    return index


@asynccontextmanager
async def make_bench(
    folder: Path, index: LiveIndex | None = None, *, library_idle_seconds: float = IDLE_SECONDS
) -> AsyncIterator[Bench]:
    """Make a proxy that has just started, for the cache in ``folder``."""
    index = index or await read_index(folder)
    app = app_of(proxy_config(folder), Layout(folder / "cache"), index)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

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
    assert runner.server is not None
    try:
        yield Bench(app, runner.server, gate, library_idle_seconds)
    finally:
        await runner.cleanup()


async def let_run() -> None:
    """Let everything run that waits for nothing else."""
    for _ in range(300):
        await asyncio.sleep(0)


async def fetched(packs: PackCache) -> None:
    """Let all packs arrive that are on their way, or turn out wrong."""
    while downloads := _downloads(packs):
        await asyncio.wait(downloads)


def _downloads(packs: PackCache) -> list[asyncio.Task[bytearray]]:
    return [entry.download for entry in packs._memory.entries if not entry.download.done()]

"""Connections of clients: bounded in number, in what they hold, and in how long they stand still."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import pytest

from nixcache_oci.proxy.front import connections as module
from nixcache_oci.proxy.front.connections import (
    HEAD_SECONDS,
    MOST_HELD_BYTES,
    MOST_HELD_OF_ONE_BYTES,
    MOST_UNREAD_BYTES,
    STALL_SECONDS,
    Connection,
    Connections,
)

try:
    import uvloop
except ImportError:
    LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
else:
    LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Server(asyncio.Protocol):
    """Counts a connection as the proxy does."""

    def __init__(self, connections: Connections, made: "asyncio.Queue[Server]") -> None:
        self.connections = connections
        self.made = made
        self.connection = Connection()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection.transport = cast("asyncio.Transport", transport)
        self.connections.opened(self.connection, asyncio.get_running_loop().time())
        self.made.put_nowait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.connections.closed(self.connection)
        self.lost.set_result(None)

    def pause_writing(self) -> None:
        self.connections.filled(self.connection, asyncio.get_running_loop().time())

    def resume_writing(self) -> None:
        self.connections.drained(self.connection)


class Story:
    """Connections over real sockets, whose other ends read nothing unless told."""

    def __init__(self, most: int) -> None:
        self.connections = Connections(most)
        self.stack = AsyncExitStack()
        self.port = 0
        self.made: asyncio.Queue[Server] = asyncio.Queue()

    async def connect(self) -> tuple[Server, socket.socket]:
        """Give both ends."""
        client = self.stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        return await self.made.get(), client


@asynccontextmanager
async def story(most: int = 100) -> AsyncIterator[Story]:
    story = Story(most)

    async with story.stack, asyncio.timeout(60):
        listener = await asyncio.get_running_loop().create_server(
            lambda: Server(story.connections, story.made), "127.0.0.1", 0
        )
        story.port = listener.sockets[0].getsockname()[1]
        try:
            yield story
        finally:
            listener.close()
            for one in list(story.connections._all):
                one.cut()
            await asyncio.sleep(0.01)


def now() -> float:
    return asyncio.get_running_loop().time()


async def is_closed(client: socket.socket) -> bool:
    """Read to the end of what is there."""
    loop = asyncio.get_running_loop()
    try:
        while await asyncio.wait_for(loop.sock_recv(client, 65536), 20):
            pass
    except ConnectionError:
        pass
    return True


def on_all_loops(test: Callable[[], object]) -> Callable[..., None]:
    @pytest.mark.parametrize("new_loop", LOOPS)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test())  # type: ignore[arg-type]

    run.__doc__ = test.__doc__
    return run


@on_all_loops
async def test_the_oldest_idle_connection_makes_room() -> None:
    """A new client is served, whatever others hold open; who is being answered stays."""
    async with story(most=8) as tale:
        ends = [await tale.connect() for _ in range(8)]
        for number, (server, _) in enumerate(ends):
            server.connection.active_at = number
        tale.connections.begin(ends[0][0].connection)
        newest, _ = await tale.connect()
        await ends[1][0].lost
        assert await is_closed(ends[1][1])
        assert [server.lost.done() for server, _ in ends] == [number == 1 for number in range(8)]
        assert not newest.lost.done()
        assert len(tale.connections) == 8


@on_all_loops
async def test_where_all_are_at_work_the_newest_goes() -> None:
    """And requests beyond three quarters are refused before that, so that some room is always left."""
    async with story(most=8) as tale:
        ends = [await tale.connect() for _ in range(8)]
        assert [tale.connections.begin(server.connection) for server, _ in ends] == [True] * 6 + [False] * 2
        newest, client = await tale.connect()
        await newest.lost
        assert await is_closed(client)
        tale.connections.end(ends[0][0].connection, now(), stays=True)
        newest, _ = await tale.connect()
        await ends[0][0].lost
        assert not newest.lost.done()


@on_all_loops
async def test_a_head_has_thirty_seconds() -> None:
    """However it drips; idle connections, and requests that are being answered, have all the time."""
    async with story() as tale:
        (idle, _), (half, _), (odd, _), (busy, _) = [await tale.connect() for _ in range(4)]
        half.connection.head_since = now()
        odd.connection.is_detached = True
        busy.connection.is_detached = True
        tale.connections.begin(busy.connection)
        for _ in range(3):
            half.connection.active_at = now() + HEAD_SECONDS - 1  # another byte came
            tale.connections.sweep(now() + HEAD_SECONDS - 1)
        await asyncio.sleep(0)
        assert not half.lost.done()
        tale.connections.sweep(now() + HEAD_SECONDS + 1)
        await half.lost
        await odd.lost
        assert not idle.lost.done()
        assert not busy.lost.done()


@on_all_loops
async def test_who_takes_nothing_for_minutes_is_cut() -> None:
    """Who takes a little now and then is not, and nobody is for what the proxy itself waits for."""
    async with story() as tale:
        ends = [await tale.connect() for _ in range(3)]
        (dead, _), (slow, reader), (waiting, _) = ends
        for server, _ in ends:
            tale.connections.set_stream(server.connection, is_stream=True)
        for server in (dead, slow):
            assert server.connection.transport is not None
            server.connection.transport.write(bytes(16 * 2**20))
        start = now()
        for number in range(1, 10):
            await asyncio.sleep(0.01)
            for _ in range(200):
                if slow.connection.progress()[0] != slow.connection.taken:
                    break
                await asyncio.get_running_loop().sock_recv(reader, 65536)
                await asyncio.sleep(0.001)
            tale.connections.sweep(start + number * (STALL_SECONDS - 10))
            if number == 1:
                assert not dead.lost.done()
        await dead.lost
        assert not slow.lost.done()
        assert not waiting.lost.done()


@on_all_loops
async def test_a_cut_wakes_who_waits_on_the_socket_itself() -> None:
    """A NAR of a layout is sent by the kernel, over a second number of the connection's file."""
    async with story() as tale:
        server, client = await tale.connect()
        assert server.connection.transport is not None
        same = server.connection.transport.get_extra_info("socket").dup()
        with same:
            same.setblocking(False)
            server.connection.cut()
            await server.lost
            assert await asyncio.get_running_loop().sock_recv(same, 1) == b""
        assert await is_closed(client)


@on_all_loops
async def test_what_waits_unread_is_bounded_in_total() -> None:
    """The one that has waited longest is cut; NARs that stream are bounded otherwise."""
    async with story() as tale:
        ends = [await tale.connect() for _ in range(6)]
        tale.connections.set_stream(ends[0][0].connection, is_stream=True)
        share = MOST_UNREAD_BYTES // 4 + 8 * 2**20
        for server, _ in ends[:5]:
            assert server.connection.transport is not None
            server.connection.transport.write(bytes(share))
            await asyncio.sleep(0)
        await ends[1][0].lost
        assert [server.lost.done() for server, _ in ends] == [False, True, False, False, False, False]
        assert tale.connections._unread_bytes <= MOST_UNREAD_BYTES
        tale.connections.set_stream(ends[0][0].connection, is_stream=False)
        await ends[0][0].lost


@on_all_loops
async def test_what_clients_send_ahead_is_bounded_in_total() -> None:
    """Who adds to what is too much is cut; who sends no more than a request or two is not."""
    async with story(most=200) as tale:
        ends = [await tale.connect() for _ in range(MOST_HELD_BYTES // MOST_HELD_OF_ONE_BYTES + 2)]
        for server, _ in ends[:-2]:
            tale.connections.hold(server.connection, MOST_HELD_OF_ONE_BYTES)
        tale.connections.hold(ends[-1][0].connection, 1000)
        tale.connections.hold(ends[-2][0].connection, 10_000)
        await ends[-2][0].lost
        tale.connections.hold(ends[0][0].connection, 0)
        tale.connections.hold(ends[0][0].connection, MOST_HELD_OF_ONE_BYTES + 1)
        await ends[0][0].lost
        assert [server.lost.done() for server, _ in ends].count(True) == 2
        assert tale.connections._held_bytes == (len(ends) - 3) * MOST_HELD_OF_ONE_BYTES + 1000


@on_all_loops
async def test_without_the_kernels_help_the_buffer_tells() -> None:
    """Other systems, and sockets of another kind."""
    async with story() as tale:
        server, _ = await tale.connect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_TCP_INFO", None)
            assert server.connection.progress() == (0, False)
            assert server.connection.transport is not None
            server.connection.transport.write(bytes(16 * 2**20))
            server.connection.sent_bytes = 16 * 2**20
            taken, is_waiting = server.connection.progress()
            assert is_waiting
            assert taken < 16 * 2**20

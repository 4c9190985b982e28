"""Lines to a server: a slow one, where what goes out waits on this machine, and one that breaks once."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

_BUFFER_BYTES = 4096  # the least that Linux takes, so that nothing waits on the other side
_PIECE_BYTES = 1024


@asynccontextmanager
async def slow_line(target: str, bytes_per_second: int) -> AsyncIterator[str]:
    """Pass connections on to ``host:port``, slowly that way and at once back; gives ``host:port``."""
    host, _, port = target.partition(":")
    tasks: set[asyncio.Task[None]] = set()

    async def relay(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server, forth = await asyncio.open_connection(host, int(port))
        coming = asyncio.create_task(_pass_on(server, back, None))
        tasks.add(coming)
        try:
            await _pass_on(client, forth, bytes_per_second)
        finally:
            coming.cancel()
            for writer in (forth, back):
                writer.transport.abort()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    relaying = await asyncio.start_server(relay, sock=listening, limit=_PIECE_BYTES)
    try:
        yield "{}:{}".format(*listening.getsockname())
    finally:
        relaying.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn


async def _pass_on(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, bytes_per_second: int | None
) -> None:
    with suppress(ConnectionError):  # one of them has gone
        while piece := await source.read(_PIECE_BYTES):
            if bytes_per_second is not None:
                await asyncio.sleep(len(piece) / bytes_per_second)
            sink.write(piece)
            await sink.drain()


_CUT_PIECE_BYTES = 16 * 1024


class CuttingLine:
    """Listens on a free loopback port, and passes everything on to another one.

    Args:
        target: ``host:port`` of the server behind it.
        after: how many bytes come back over one connection before it is cut; the first that gets so far is
            the only one.

    Attributes:
        is_cut: whether that happened.
        came_back_bytes: over all connections.
    """

    def __init__(self, target: str, after: int) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._after = after
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.is_cut = False
        self.came_back_bytes = 0

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the thread that accepts.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listening.close()
        for one in self._sockets:
            _hang_up(one)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._listening.getsockname())

    def _start(self, job: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=job, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            self._start(self._pass_on, client, server, False)
            self._start(self._pass_on, server, client, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_coming_back: bool) -> None:
        passed = 0
        try:
            while piece := source.recv(_CUT_PIECE_BYTES):
                passed += len(piece)
                if is_coming_back and passed > self._after and self._may_cut():
                    break
                if is_coming_back:
                    with self._lock:
                        self.came_back_bytes += len(piece)
                sink.sendall(piece)
        except OSError:
            pass  # one of them has gone, or this is the end of the test
        _hang_up(source)
        _hang_up(sink)

    def _may_cut(self) -> bool:
        with self._lock:
            was_cut, self.is_cut = self.is_cut, True
            return not was_cut


def _hang_up(one: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        one.shutdown(socket.SHUT_RDWR)

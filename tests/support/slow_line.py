"""Lines to a server: a slow one, one on which some requests never arrive, and one that breaks once."""

import asyncio
import re
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


_THREAD_PIECE_BYTES = 16 * 1024


class _Line:
    """Listens on a free loopback port, and passes TCP on to ``host:port`` and back, in threads."""

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the threads.
        _hang_up(self._listening)
        self._threads[0].join()
        for one in self._sockets:
            _hang_up(one)
        for thread in self._threads:
            thread.join()
        for one in (self._listening, *self._sockets):
            one.close()

    @property
    def host(self) -> str:
        return "{}:{}".format(*self._listening.getsockname())

    def _start(self, job: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=job, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # it was shut down
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                self._start(self._pass_on, client, server, False)
                self._start(self._pass_on, server, client, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_coming_back: bool) -> None:
        kept: list[bytes] = []
        with suppress(OSError, EOFError):  # one of them has gone, or this is the end of the test
            while piece := source.recv(_THREAD_PIECE_BYTES):
                if self.may_pass(piece, kept, is_coming_back=is_coming_back):
                    sink.sendall(piece)
        _hang_up(sink)
        if is_coming_back:
            _hang_up(source)

    def may_pass(self, piece: bytes, kept: list[bytes], *, is_coming_back: bool) -> bool:
        """Tell whether a piece is passed on; EOFError cuts. ``kept`` is for notes of this direction."""
        raise NotImplementedError


class HeldLine(_Line):
    """Requests that never arrive: a connection ends to be passed on with the piece that has a pattern.

    Attributes:
        held: is set when something is held back.
    """

    def __init__(self, target: str, pattern: bytes) -> None:
        super().__init__(target)
        self._pattern = re.compile(pattern)
        self.held = threading.Event()

    def may_pass(self, piece: bytes, kept: list[bytes], *, is_coming_back: bool) -> bool:
        if not is_coming_back and (kept or self._pattern.search(piece)):
            kept.append(b"")
            self.held.set()
            return False
        return True


class CuttingLine(_Line):
    """The first connection over which more than so many bytes come back is cut, and no other.

    Attributes:
        is_cut: whether that happened.
        came_back_bytes: over all connections.
    """

    def __init__(self, target: str, after: int) -> None:
        super().__init__(target)
        self._after = after
        self.is_cut = False
        self.came_back_bytes = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def may_pass(self, piece: bytes, kept: list[bytes], *, is_coming_back: bool) -> bool:
        if is_coming_back:
            kept.append(piece)
            with self._lock:
                if sum(map(len, kept)) > self._after and not self.is_cut:
                    self.is_cut = True
                    raise EOFError
                self.came_back_bytes += len(piece)
        return True


def _hang_up(one: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        one.shutdown(socket.SHUT_RDWR)

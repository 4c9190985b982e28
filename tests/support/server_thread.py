"""Web servers in a thread and event loop of their own: for sync tests, async tests and programs alike."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TypeAlias

from aiohttp import web

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_START_SECONDS = 10
_READ_BUFFER = 256 * 1024  # bytes


class ServerThread:
    """One loopback port for each handler; a restart listens on the same ports again."""

    def __init__(self, *handlers: Handler) -> None:
        self._handlers = handlers
        self._ports = [0] * len(handlers)
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    @property
    def ports(self) -> list[int]:
        """The ports in the order of the handlers; known after the first start."""
        return list(self._ports)

    def start(self) -> None:
        if self._thread is not None:
            return
        ready: Future[list[int]] = Future()
        self._thread = Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        try:
            self._ports = ready.result(_START_SECONDS)
        except OSError:
            self._thread.join()
            self._thread = None
            raise

    def stop(self) -> None:
        """Close the ports and abort every connection, as a crash would."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    async def _serve(self, ready: Future[list[int]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        servers = [web.Server(handler, read_bufsize=_READ_BUFFER) for handler in self._handlers]
        listeners: list[asyncio.Server] = []
        try:
            for server, port in zip(servers, self._ports, strict=True):
                listeners.append(await self._loop.create_server(server, "127.0.0.1", port))
            ready.set_result([listener.sockets[0].getsockname()[1] for listener in listeners])
            await self._stopping.wait()
        except OSError as error:
            ready.set_exception(error)
        finally:
            for listener in listeners:
                listener.close()
            for server in servers:
                await _abort(server)


async def _abort(server: web.Server) -> None:
    """End connections below asyncio: its transports mind being aborted while the kernel copies a file."""
    for connection in server.connections:
        if connection.transport is not None:
            with suppress(OSError):  # it has ended already
                connection.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    await server.shutdown(0.1)
    await asyncio.sleep(0)  # lets the transports close their sockets


@contextmanager
def listener(answers: Mapping[str, str]) -> Iterator[str]:
    """Listen as any user of a machine may; gives the URL. Paths without a text are 404."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        text = answers.get(request.path)
        return web.Response(status=404 if text is None else 200, text=text)

    server = ServerThread(answer)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.ports[0]}"
    finally:
        server.stop()

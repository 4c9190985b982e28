"""A slow line: what goes out over it waits on this machine, as with a home's uplink."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

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

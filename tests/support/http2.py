"""Just enough of HTTP/2 for servers that misbehave: frames by hand, over TLS.

Sources: RFC 9113, sections 4 and 6; RFC 7541, section 6.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from tests.support.upstream_server import Talk

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8
OK = b"\x88"  # :status 200

Exchange = Callable[["Connection", int], Awaitable[None]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


class Connection:
    """What a server says on one connection; ``number`` counts them from one."""

    def __init__(self, writer: asyncio.StreamWriter, number: int) -> None:
        self._writer = writer
        self.number = number

    async def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))
        await self._writer.drain()

    async def answer(self, stream: int, body: bytes) -> None:
        await self.send(frame(HEADERS, END_HEADERS, stream, OK), frame(DATA, END_STREAM, stream, body))

    def hang_up(self) -> None:
        self._writer.close()


def speaking(exchange: Exchange, *, requests: list[tuple[int, int]] | None = None) -> Talk:
    """Take each request of each connection as the function says, side by side.

    ``requests`` notes connection and stream of each.
    """
    connections = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        connection = Connection(writer, connections)
        under_way: set[asyncio.Task[None]] = set()
        await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        await connection.send(frame(SETTINGS, 0, 0))
        try:
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind == SETTINGS and not flags & ACK:
                    await connection.send(frame(SETTINGS, ACK, 0))
                if kind == HEADERS:
                    if requests is not None:
                        requests.append((connection.number, stream))
                    under_way.add(asyncio.create_task(_survive(exchange(connection, stream))))
        finally:
            for one in under_way:
                one.cancel()

    return converse


async def _survive(exchange: Awaitable[None]) -> None:
    with suppress(OSError):  # the client has gone
        await exchange


def http2_context(chain: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["h2"])
    return context

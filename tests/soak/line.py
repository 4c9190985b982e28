"""One connection of a load: as little of an HTTP client as it takes, and every wait has its limit."""

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_PIECE_BYTES: Final = 64 * 1024


class NoAnswerError(Exception):
    """A request was not answered, or an answer stood still for longer than it may."""


class CutError(Exception):
    """The connection ended in the middle of a body: what a client of the proxy has to reckon with."""


@dataclass(slots=True)
class Limits:
    """What holds for all connections.

    Attributes:
        wait_seconds: for the next byte, at the most.
        longest_seconds: that anything was waited for so far.
        open: connections now.
        most_open: connections so far.
    """

    wait_seconds: float
    longest_seconds: float = 0.0
    open: int = 0
    most_open: int = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure a wait."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's head; ``size`` is that of the body that follows."""

    status: int
    headers: dict[str, str]
    size: int


class Line:
    """A connection to the proxy; opened when it is needed."""

    def __init__(self, host: str, limits: Limits) -> None:
        self._host, _, self._port = host.partition(":")
        self._limits = limits
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, data: bytes) -> None:
        """Send anything.

        Raises:
            NoAnswerError: there is no connection to be had.
        """
        _, writer = await self._open()
        writer.write(data)

    async def ask(self, method: str, path: str, **headers: str) -> Head:
        """Send a request, and wait for the head of its answer.

        Raises:
            NoAnswerError: none came.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await self.send(f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{lines}\r\n".encode())
        return await self.head(method, path)

    async def head(self, method: str, path: str) -> Head:
        """Wait for the head of an answer.

        Raises:
            NoAnswerError: none came.
        """
        reader, _ = await self._open()
        try:
            with self._limits.timed():
                async with asyncio.timeout(self._limits.wait_seconds):
                    text = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (TimeoutError, OSError, EOFError) as error:
            self.close()
            raise NoAnswerError(f"{method} {path}: {type(error).__name__} instead of a head") from None
        status_line, *lines = text.split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = 0 if method == "HEAD" else int(headers["content-length"])
        return Head(int(status_line.split()[1]), headers, size)

    async def piece(self, left: int) -> bytes:
        """Give the next bytes of a body of which so many are to come.

        Raises:
            CutError: the connection ended.
            NoAnswerError: it stands still.
        """
        reader, _ = await self._open()
        try:
            with self._limits.timed():
                async with asyncio.timeout(self._limits.wait_seconds):
                    piece = await reader.read(min(left, _PIECE_BYTES))
        except TimeoutError:
            self.close()
            raise NoAnswerError(f"a body stood still with {left} bytes to come") from None
        except OSError:
            piece = b""
        if not piece:
            self.close()
            raise CutError
        return piece

    async def body(self, head: Head) -> bytes:
        """Read a whole body; errors are those of ``piece``."""
        content = bytearray()
        while len(content) < head.size:
            content += await self.piece(head.size - len(content))
        return bytes(content)

    def close(self, *, reset: bool = False) -> None:
        """Hang up, by RST if asked."""
        if self._streams is None:
            return
        _, writer = self._streams
        self._streams = None
        self._limits.open -= 1
        if reset and (raw := writer.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            try:
                async with asyncio.timeout(self._limits.wait_seconds):
                    self._streams = await asyncio.open_connection(self._host, int(self._port))
            except (TimeoutError, OSError) as error:
                raise NoAnswerError(f"no connection: {type(error).__name__}") from None
            self._limits.open += 1
            self._limits.most_open = max(self._limits.most_open, self._limits.open)
        return self._streams

"""Servers at a distance: TCP passed on, late and no faster than a line would carry it.

Each connection is a line of its own: its first bytes wait for the handshakes, all bytes take half a round
trip each way, and so many pass in a second. A process of its own carries them, so that what is measured
shares no event loop with the line. Bytes are passed on as they came, in pieces, with one timer a piece.

    python -m bench.distance --round-trip 0.04 --rate 25000000 127.0.0.1:8080
"""

import argparse
import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import uvloop

# TCP's, and TLS 1.3's: what is far away is asked over TLS.
_HANDSHAKES = 2
# A sender may be so far ahead of the line, besides what is under way on it.
_BUFFER_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Distance:
    """How far away a server is.

    Attributes:
        round_trip: seconds.
        rate: bytes a second of each connection, in each direction.
        handshakes: round trips before the first bytes: one, where TLS makes its own.
    """

    round_trip: float
    rate: int = 200_000_000 // 8
    handshakes: int = _HANDSHAKES

    @property
    def milliseconds(self) -> int:
        """The round trip."""
        return round(self.round_trip * 1000)


@contextmanager
def at_distance(distance: Distance, *targets: str) -> Iterator[list[str]]:
    """Put servers at a distance; gives where each is now.

    Args:
        distance: of all of them.
        targets: ``host:port`` of each.
    """
    line = ["--round-trip", str(distance.round_trip), "--rate", str(distance.rate)]
    line += ["--handshakes", str(distance.handshakes)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.distance", *line, *targets], stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout is None:
            raise AssertionError("it was asked for")
        try:
            yield process.stdout.readline().split()
        finally:
            process.terminate()


class _Direction:
    """One way of a connection: pieces wait for their time."""

    def __init__(self, distance: Distance, source: asyncio.Transport, sink: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._distance = distance
        self._source = source
        self._sink = sink
        self._pieces: deque[bytes | None] = deque()  # None: the end
        self._bytes = 0
        self._most_bytes = int(distance.rate * distance.round_trip) + _BUFFER_BYTES
        self._is_paused = False
        self.free_at = self._loop.time()

    def take(self, piece: bytes | None) -> None:
        """Take what came from the source."""
        size = len(piece or b"")
        self.free_at = max(self.free_at, self._loop.time()) + size / self._distance.rate
        self._pieces.append(piece)
        self._bytes += size
        self._loop.call_at(self.free_at + self._distance.round_trip / 2, self._deliver)
        if self._bytes > self._most_bytes and not self._is_paused:
            self._is_paused = True
            self._source.pause_reading()

    def _deliver(self) -> None:
        piece = self._pieces.popleft()
        if self._sink.is_closing():
            return
        if piece is None:
            self._sink.close()
            return
        self._sink.write(piece)
        self._bytes -= len(piece)
        if self._is_paused and self._bytes <= self._most_bytes and not self._source.is_closing():
            self._is_paused = False
            self._source.resume_reading()


class _End(asyncio.Protocol):
    """One end of a connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._early: list[bytes] = []
        self._is_over = False
        self.transport: asyncio.Transport | None = None
        self.outgoing: _Direction | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.outgoing is None:
            self._early.append(data)
        else:
            self.outgoing.take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._is_over = True
        if self.outgoing is not None:
            self.outgoing.take(None)

    def join(self, other: "_End", distance: Distance, *, first_after: float = 0.0) -> None:
        """Pass on to the other end, from so many seconds on."""
        if self.transport is None or other.transport is None:
            raise AssertionError("both are connected")
        self.outgoing = _Direction(distance, self.transport, other.transport)
        self.outgoing.free_at += first_after
        for piece in self._early:
            self.outgoing.take(piece)
        if self._is_over:
            self.outgoing.take(None)


class _Near(_End):
    """The client's end."""

    def __init__(self, distance: Distance, target: str) -> None:
        super().__init__()
        self._distance = distance
        self._host, _, self._port = target.rpartition(":")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            _, far = await self._loop.create_connection(_End, self._host, int(self._port))
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self.join(far, self._distance, first_after=self._distance.handshakes * self._distance.round_trip)
        far.join(self, self._distance)


async def _serve(distance: Distance, targets: list[str]) -> None:
    loop = asyncio.get_running_loop()
    places = []
    for target in targets:
        near = await loop.create_server(partial(_Near, distance, target), "127.0.0.1", 0)
        places.append(f"127.0.0.1:{near.sockets[0].getsockname()[1]}")
    print(*places, flush=True)
    await loop.create_future()


def main() -> None:
    """Serve until terminated; prints where."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.distance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--round-trip", type=float, required=True)
    parser.add_argument("--rate", type=int, required=True)
    parser.add_argument("--handshakes", type=int, default=_HANDSHAKES)
    parser.add_argument("targets", nargs="+")
    arguments = parser.parse_args()
    uvloop.run(
        _serve(Distance(arguments.round_trip, arguments.rate, arguments.handshakes), arguments.targets)
    )


if __name__ == "__main__":
    main()

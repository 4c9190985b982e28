"""A request's body, and stall detection for its upload.

An upload may take any time, but may not stall. Bytes that were written are not yet sent: megabytes may be in
the connection's buffer and in the kernel's, which is minutes on a slow line. So the kernel, where it can, is
asked how much the peer has not acknowledged.

Source: Linux, tcp(7), SIOCOUTQ.
"""

import array
import asyncio
import fcntl
import sys
import termios
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.wording import counted

_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body."""

    source: bytes | Path = field(repr=False)  # the bytes, or a file; not shown, for it may hold a secret
    size: int  # in bytes
    start: int = 0  # offset of the first byte in the source

    @classmethod
    def of(cls, source: bytes | Path) -> "Body":
        """Make the body of a source; OSError if there is no such file."""
        return cls(source, source.stat().st_size if isinstance(source, Path) else len(source))

    def part(self, start: int, end: int) -> "Body":
        """Make the body of its bytes from ``start`` to before ``end``."""
        return Body(self.source, end - start, self.start + start)

    def pieces(self) -> Generator[bytes, None, None]:
        """Read it once from its start; a file is open as long as the iterator is.

        Files are read in the event loop: a piece takes well below a millisecond from a local disk, less than
        the way to a thread and back.
        """
        if isinstance(self.source, bytes):
            view = memoryview(self.source)[self.start : self.start + self.size]
            for position in range(0, self.size, _PIECE_BYTES):
                yield bytes(view[position : position + _PIECE_BYTES])
            return
        with self.source.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left and (piece := file.read(min(_PIECE_BYTES, left))):
                left -= len(piece)
                yield piece


_TICKS: Final = 10  # checks per stall timeout
# The least rate at which a registry hashes and stores an upload. Its answer may also take a further stall
# timeout, because not every kernel tells what it still holds.
_COMMIT_BYTES_PER_SECOND: Final = 25_000_000


class UploadProgress:
    """Detects that one upload, over these transports, makes no progress for ``stall_seconds``."""

    def __init__(self, size: int, stall_seconds: float, transports: Sequence[asyncio.Transport]) -> None:
        self._size = size
        self._stall_seconds = stall_seconds
        self._transports = transports
        self._given = 0

    async def pass_on(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the body on; OSError if it is not as long as announced: the connection has to be ended."""
        for piece in pieces:
            yield piece
            self._given += len(piece)
        if self._given != self._size:
            raise OSError(f"the source gave {counted(self._given, 'byte')}, not {self._size}")

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Run a block, from the connection to the answer's head; TimeoutError if it stalled."""
        async with asyncio.timeout(None) as limit:
            watching = asyncio.create_task(self._watch(limit), name="upload progress")
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.wait([watching])

    async def _watch(self, limit: asyncio.Timeout) -> None:
        clock = asyncio.get_running_loop().time
        given, waiting = -1, 0
        while given < self._size or waiting:
            former = given, waiting
            if self._transports:
                given, waiting = self._given, sum(map(_count_waiting, self._transports))
                if given > former[0] or waiting < former[1]:
                    _set(limit, clock() + self._stall_seconds)
            await asyncio.sleep(self._stall_seconds / _TICKS)
        commit_seconds = self._size / _COMMIT_BYTES_PER_SECOND
        _set(limit, clock() + 2 * self._stall_seconds + commit_seconds)


def _set(limit: asyncio.Timeout, when: float) -> None:
    with suppress(RuntimeError):  # it has just run out
        limit.reschedule(when)


def _count_waiting(transport: asyncio.Transport) -> int:
    """Return how many bytes the peer has not acknowledged, as far as that is known."""
    waiting = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is not None and sys.platform == "linux":
        held = array.array("i", [0])
        with suppress(OSError, ValueError):  # closed meanwhile, which the upload itself notices
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, held)
            waiting += held[0]
    return waiting

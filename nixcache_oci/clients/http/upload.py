"""What a request carries, and whether it makes progress.

An upload's limit is on standing still, however long the whole of it takes. What the program has handed over
is not sent yet: megabytes may wait in the connection's buffer and in the kernel's, minutes on a slow line. So
the kernel is asked what the other side has not acknowledged, where it can tell.

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
    """A request's body.

    Attributes:
        source: the bytes, or the file that holds them; not shown, for it may hold a secret.
        size: in bytes.
    """

    source: bytes | Path = field(repr=False)
    size: int

    @classmethod
    def of(cls, source: bytes | Path) -> "Body":
        """Measure a source.

        Raises:
            OSError: there is no such file.
        """
        return cls(source, source.stat().st_size if isinstance(source, Path) else len(source))

    def pieces(self) -> Generator[bytes, None, None]:
        """Read it once from its start; a file is open as long as the iterator is.

        Files are read right in the event loop: a piece takes well below a millisecond from a local disk, less
        than handing it to a thread and back.
        """
        if isinstance(self.source, bytes):
            view = memoryview(self.source)
            for position in range(0, self.size, _PIECE_BYTES):
                yield bytes(view[position : position + _PIECE_BYTES])
            return
        with self.source.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece


_TICKS: Final = 10  # looks during the time that a connection may stand still
# How fast a registry hashes and stores an upload, at the least. The answer to one may also take as long
# again as a connection may stand still, for not every kernel tells what it still holds.
_COMMIT_BYTES_PER_SECOND: Final = 25_000_000


class UploadProgress:
    """Watches one upload.

    Args:
        size: of the body, in bytes.
        stall_seconds: how long the connection may stand still.
        transports: those that the body goes to.
    """

    def __init__(self, size: int, stall_seconds: float, transports: Sequence[asyncio.Transport]) -> None:
        self._size = size
        self._stall_seconds = stall_seconds
        self._transports = transports
        self._given = 0

    async def pass_on(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the body on.

        Raises:
            OSError: it has not as many bytes as were announced; the connection is to be ended then.
        """
        for piece in pieces:
            yield piece
            self._given += len(piece)
        if self._given != self._size:
            raise OSError(f"the source gave {counted(self._given, 'byte')}, not {self._size}")

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Let a block run until the answer's head has come; it begins to count when there is a connection.

        Raises:
            TimeoutError: nothing moved for too long.
        """
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
    """Tell how many bytes the other side has not acknowledged, as far as that is known here."""
    waiting = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is not None and sys.platform == "linux":
        held = array.array("i", [0])
        with suppress(OSError, ValueError):  # it has ended meanwhile, which the upload itself notices
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, held)
            waiting += held[0]
    return waiting

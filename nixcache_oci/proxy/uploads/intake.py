"""Taking in one NAR: written, hashed and unpacked on a thread of its own, while it arrives.

What is received and not yet handled is bounded, and so is what a NAR may unpack to.
"""

import asyncio
import hashlib
import queue
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Final, cast

from nixcache_oci.cache.parallel import retrieve, run_in_thread
from nixcache_oci.errors import Error, FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_check import measure_nar

MOST_AHEAD: Final = 4
"""Pieces that are received and not yet handled, of each NAR."""

FREE_NAR_BYTES: Final = 1024**3
MOST_RATIO: Final = 1000
"""A NAR may unpack to the free bytes, and so many times what was received of it."""

_MOST_AT_ONCE_BYTES: Final = 256 * 1024  # that are unpacked on the event loop
_FAST: Final = frozenset({"zstd", "none"})


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of a NAR."""

    file_hash: NixHash
    file_size: int
    nar_hash: NixHash
    nar_size: int


class DiskError(Error):
    """The spool cannot be written."""


class _StoppedError(Error):
    """The client went away."""


async def measure(content: bytes, compression: str) -> Measured:
    """Measure a small compressed NAR; FormatError as of ``take_in``."""
    if compression in _FAST:
        # A thread takes longer to begin than this takes; what unpacks to more is left to one.
        with suppress(FormatError):
            return _measure_all(content, compression, lambda: _MOST_AT_ONCE_BYTES)
    most = FREE_NAR_BYTES + MOST_RATIO * len(content)
    return await run_in_thread(_measure_all, content, compression, lambda: most)


def _measure_all(content: bytes, compression: str, most_bytes: Callable[[], int]) -> Measured:
    nar_hash, nar_size = measure_nar(compression, BytesIO(content), most_bytes, _nothing)
    file_hash = NixHash(hashlib.sha256(content).digest()) if compression != "none" else nar_hash
    return Measured(file_hash, len(content), nar_hash, nar_size)


async def take_in(
    chunks: AsyncIterator[bytes], compression: str, file: IO[bytes], threads: Executor
) -> Measured:
    """Write a compressed NAR to a file, and measure it.

    Raises:
        FormatError: it is no NAR in the form that Nix writes, or unpacks to too much; the rest is not read.
        DiskError: the file cannot be written.
    """
    pipe = _Pipe(file, asyncio.get_running_loop(), is_compressed=compression != "none")
    measuring = asyncio.get_running_loop().run_in_executor(threads, _measure, pipe, compression)
    measuring.add_done_callback(lambda _: pipe.has_space.set())
    try:
        async for chunk in chunks:
            await pipe.wait(measuring)
            if measuring.done():
                break
            pipe.put(chunk)
        pipe.put(b"")
        return await asyncio.shield(measuring)
    except BaseException:
        pipe.put(None)
        await asyncio.wait([measuring])
        retrieve(measuring)
        raise


def _measure(pipe: "_Pipe", compression: str) -> Measured:
    nar_hash, nar_size = measure_nar(compression, cast("IO[bytes]", pipe), pipe.most_nar_bytes, _nothing)
    file_hash = NixHash(pipe.hasher.digest()) if pipe.hasher is not None else nar_hash
    return Measured(file_hash, pipe.size, nar_hash, nar_size)


def _nothing() -> None:
    """Go on: a stopped pipe raises by itself."""


class _Pipe:
    """Hands pieces from the event loop to a thread, which reads them like a file; each is written first."""

    def __init__(self, file: IO[bytes], loop: asyncio.AbstractEventLoop, *, is_compressed: bool) -> None:
        # Hashing takes half of the time, and the file is the NAR where it is not compressed.
        self.hasher = hashlib.sha256() if is_compressed else None
        self.size = 0
        self.has_space = asyncio.Event()
        self._file = file
        self._loop = loop
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    async def wait(self, reader: "asyncio.Future[Measured]") -> None:
        """Wait until a piece more may be put, or nobody reads."""
        while self._pieces.qsize() >= MOST_AHEAD and not reader.done():
            self.has_space.clear()
            await self.has_space.wait()

    def put(self, piece: bytes | None) -> None:
        """Add a piece; an empty one ends the file, None tells the reader to give up."""
        self._pieces.put(piece)

    def most_nar_bytes(self) -> int:
        return FREE_NAR_BYTES + MOST_RATIO * self.size

    def read(self, _size: int) -> bytes:
        piece = self._pieces.get()
        if self._pieces.qsize() == MOST_AHEAD - 1:
            self._loop.call_soon_threadsafe(self.has_space.set)
        if piece is None:
            raise _StoppedError("the client went away")
        if not piece:
            self._pieces.put(b"")  # the end is read again
            return piece
        if self.hasher is not None:
            self.hasher.update(piece)
        self.size += len(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise DiskError(error.strerror or str(error)) from None
        return piece

"""An open blob of an OCI image layout; its calls block, and may be made on any thread."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

from nixcache_oci.errors import FormatError

_Result = TypeVar("_Result")


class LayoutFile:
    """An open blob.

    Args:
        descriptor: of the file; closed by ``close``.
        translated: turns foreign errors into ours, with the blob's name.
    """

    def __init__(self, descriptor: int, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._descriptor = descriptor
        self._translated = translated

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._descriptor

    def size(self) -> int:
        """Return its current size in bytes."""
        return os.fstat(self._descriptor).st_size

    def has_second_name(self) -> bool:
        """Tell whether the file has a second name, by a hard link."""
        return os.fstat(self._descriptor).st_nlink > 1

    def read(self, start: int, end: int) -> bytes:
        """Read all bytes from ``start`` to before ``end``.

        Raises:
            RegistryError: the file is shorter, or cannot be read.
        """
        pieces: list[bytes] = []
        while start < end:
            with self._translated():
                piece = os.pread(self._descriptor, end - start, start)
                if not piece:
                    raise FormatError(f"it ended at byte {start} while it was read")
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def duplicate(self) -> "LayoutFile":
        """Open the same file again."""
        with self._translated():
            return LayoutFile(os.dup(self._descriptor), self._translated)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


async def one_ahead(jobs: Iterable[Callable[[], _Result]]) -> AsyncGenerator[_Result]:
    """Run jobs on threads, in order and one at a time, one ahead of the consumer; yields their results.

    When this generator has ended, by an error or by being closed, no job is running any more.
    """
    loop = asyncio.get_running_loop()
    started = (loop.run_in_executor(None, job) for job in jobs)
    running = next(started, None)
    try:
        while running is not None:
            result = await asyncio.shield(running)
            running = next(started, None)
            yield result
    finally:
        if running is not None:
            await asyncio.wait([running])
            running.exception()  # retrieved, for nobody else awaits it

"""One blob of an OCI image layout, open to be read; a file's calls block, and may be made on any thread."""

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
        descriptor: of the file, which is ours to close.
        translated: turns foreign errors into ours, with the blob's name.
    """

    def __init__(self, descriptor: int, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._descriptor = descriptor
        self._translated = translated

    def fileno(self) -> int:
        """Give its descriptor."""
        return self._descriptor

    def size(self) -> int:
        """Tell how many bytes it has now."""
        return os.fstat(self._descriptor).st_size

    def has_second_name(self) -> bool:
        """Tell whether a hard link leads to it as well."""
        return os.fstat(self._descriptor).st_nlink > 1

    def read(self, start: int, end: int) -> bytes:
        """Read all bytes from ``start`` to before ``end``.

        Raises:
            RegistryError: there are fewer, or they cannot be read.
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
        """Open the same file once more."""
        with self._translated():
            return LayoutFile(os.dup(self._descriptor), self._translated)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


async def one_ahead(jobs: Iterable[Callable[[], _Result]]) -> AsyncGenerator[_Result]:
    """Run jobs on threads, one at a time and in order, and yield what they give.

    Where this generator has ended, by an error or by being closed, no job is at work any more.
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
            running.exception()  # nobody else will hear of it

"""An open blob of an OCI image layout, and checks that it matches its digest before a part of it is sent.

Anyone who may write to the folder can put anything there under any digest, and a part cannot be verified by
itself. So the whole file is hashed first, and again only after it changed: a client that resumes a large NAR
many times costs one hash. Source: design section 3, promise 3.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, TypeVar

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.errors import DigestError, FormatError, RegistryError
from nixcache_oci.oci.digest import Digest

_Result = TypeVar("_Result")


class LayoutFile:
    """An open blob; ``translated`` turns foreign errors into ours, with the blob's name."""

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
        """Read all bytes from ``start`` to before ``end``; RegistryError if the file does not have them."""
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


MAX_CHECKS: Final = 64
"""Files that are being hashed or wait for it; Nix has 25 connections by default."""

_AT_ONCE: Final = 2  # they share the threads with all streams
_MAX_REMEMBERED: Final = 4096
_READ_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class _FileState:
    """Identifies a file and its version: only the kernel sets the time of the last change (ctime)."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: LayoutFile) -> Self:
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(slots=True)
class _Check:
    task: asyncio.Task[None]
    waiting: int = 0


class FileChecks:
    """Hashes files, and remembers those that matched."""

    def __init__(self) -> None:
        self._right: BoundedCache[Digest, _FileState] = BoundedCache(_MAX_REMEMBERED)
        self._checks: dict[tuple[Digest, _FileState], _Check] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def check(self, digest: Digest, file: LayoutFile) -> None:
        """Wait until a file is known to match; concurrent calls for the same file share the work.

        Raises DigestError if it does not. Raises RegistryError if it is unreadable, or too many others are
        being checked.
        """
        state = _FileState.of(file)
        if self._right.get(digest) == state:
            return
        key = (digest, state)
        check = self._checks.get(key)
        if check is None:
            check = self._checks[key] = self._begin(digest, file, state)
        check.waiting += 1
        try:
            await asyncio.shield(check.task)
        finally:
            check.waiting -= 1
            if not check.waiting:
                del self._checks[key]
                check.task.cancel()

    async def close(self) -> None:
        """Cancel checks that are under way."""
        tasks = [check.task for check in self._checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, digest: Digest, file: LayoutFile, state: _FileState) -> _Check:
        if len(self._checks) >= MAX_CHECKS:
            raise RegistryError(
                f"blob {digest}: {MAX_CHECKS} other files are being checked", is_temporary=True
            )
        # The caller may close its file while others wait.
        own = file.duplicate()
        task = asyncio.create_task(self._hash(digest, own, state), name=f"check {digest.hex[:12]}")
        task.add_done_callback(lambda done: _end(done, own))
        return _Check(task)

    async def _hash(self, digest: Digest, file: LayoutFile, state: _FileState) -> None:
        hasher = hashlib.sha256()

        def read(start: int) -> None:
            hasher.update(file.read(start, min(start + _READ_BYTES, state.size)))

        jobs = (partial(read, start) for start in range(0, state.size, _READ_BYTES))
        async with self._turns, aclosing(one_ahead(jobs)) as done:
            async for _ in done:
                pass
        if hasher.hexdigest() != digest.hex:
            raise DigestError(f"{digest}: the file has digest sha256:{hasher.hexdigest()}")
        self._right.put(digest, state)


def _end(done: asyncio.Task[None], file: LayoutFile) -> None:
    file.close()
    if not done.cancelled():
        done.exception()  # retrieved, for all who waited may be gone

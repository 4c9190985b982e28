"""Checks that a layout's files match their digests, before a part of one is sent.

Anyone who may write to the folder can put anything there under any digest, and a part cannot be verified by
itself. So the whole file is hashed first, and again only after it changed: a client that resumes a large NAR
many times costs one hash. Source: design section 3, promise 3.
"""

import asyncio
import hashlib
import os
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.layout_file import LayoutFile, one_ahead
from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.oci.digest import Digest

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

        Raises:
            DigestError: it does not match its digest.
            RegistryError: it could not be read, or too many others are being checked.
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

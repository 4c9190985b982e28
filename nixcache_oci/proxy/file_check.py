"""Whether local files hold what their digest says, so that a part of one can be sent by itself.

Whoever may write into a folder may put anything there under any digest, and a part cannot be checked alone.
So the whole file is hashed before a part of it is sent, once for as long as it does not change: a client that
resumes a large NAR again and again does not make it be hashed each time. Source: design section 3, promise 3.
"""

import asyncio
import hashlib
import os
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.clients.memo import Memo
from nixcache_oci.clients.repository import BlobFile
from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.file_part import read_parts
from nixcache_oci.proxy.quarantine import Quarantine

MAX_CHECKS: Final = 64
"""So many files are hashed, or wait for it; Nix has 25 connections, unless told otherwise."""

_AT_ONCE: Final = 2  # they share the threads with all that streams
_MAX_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class _State:
    """Which file it is, and as of when: the kernel alone sets the time of the last change (ctime)."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: BlobFile) -> Self:
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(slots=True)
class _Check:
    task: asyncio.Task[None]
    waiting: int = 0


class FileChecks:
    """Hashes files, and remembers those that were right.

    Args:
        quarantine: takes the blobs that turn out wrong.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._right: Memo[Digest, _State] = Memo(_MAX_REMEMBERED)
        self._checks: dict[tuple[Digest, _State], _Check] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def check(self, digest: Digest, file: BlobFile) -> None:
        """Wait until a file is known to be right; whoever asks for the same one meanwhile shares the work.

        Raises:
            DigestError: it is not what its digest says; from now on the blob is in quarantine.
            RegistryError: it could not be read, or too many others are being checked.
        """
        state = _State.of(file)
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

    async def check_shared(self, digest: Digest, file: BlobFile) -> None:
        """Do as ``check`` does where a file has a second name: it may be a secret's, which is no blob."""
        if os.fstat(file.fileno()).st_nlink > 1:
            await self.check(digest, file)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [check.task for check in self._checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, digest: Digest, file: BlobFile, state: _State) -> _Check:
        if len(self._checks) >= MAX_CHECKS:
            raise RegistryError(
                f"blob {digest}: {MAX_CHECKS} other files are being checked", is_temporary=True
            )
        # Whoever opened the file may close it while others wait.
        own = file.duplicate()
        task = asyncio.create_task(self._hash(digest, own, state), name=f"check {digest.hex[:12]}")
        task.add_done_callback(lambda done: _end(done, own))
        return _Check(task)

    async def _hash(self, digest: Digest, file: BlobFile, state: _State) -> None:
        hasher = hashlib.sha256()
        async with self._turns, aclosing(read_parts(file, state.size, hasher.update)) as parts:
            async for _ in parts:
                pass
        if hasher.hexdigest() != digest.hex:
            self._quarantine.add(digest)
            raise DigestError(f"{digest}: the file has digest sha256:{hasher.hexdigest()}")
        self._right.put(digest, state)


def _end(done: asyncio.Task[None], file: BlobFile) -> None:
    file.close()
    if not done.cancelled():
        done.exception()  # all who waited for it may be gone

"""Verified streams: no client receives a corrupt blob as a complete response.

The bytes are hashed while they stream, and the last piece is held back until the hash matches. A corrupt blob
is then 404 for a while, so that a client's resume fails gracefully: Nix resumes a cut transfer; at a 404 it
tries another cache, or builds. Source: design section 3, promise 3; facts about Nix clients, "Reading".
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from threading import Lock
from typing import Final

from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.errors import DigestError
from nixcache_oci.oci.digest import Digest

QUARANTINE_SECONDS: Final = 600.0
_MAX_ENTRIES: Final = 1024


class Quarantine:
    """Remembers digests for some seconds after they were last added; ``clock`` is monotonic."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, seconds: float = QUARANTINE_SECONDS
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until: dict[Digest, float] = {}

    def add(self, digest: Digest) -> None:
        """Add a blob."""
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + self._seconds
        while len(self._until) > _MAX_ENTRIES:
            del self._until[next(iter(self._until))]

    def __contains__(self, digest: Digest) -> bool:
        until = self._until.get(digest)
        if until is None:
            return False
        if until <= self._clock():
            del self._until[digest]
            return False
        return True


# A thread starts for so much: with less, waiting for the interpreter costs more than it gains.
_BATCH_BYTES: Final = 512 * 1024
# Hashing may lag by so much: waiting at each batch would stall the stream.
_MOST_BEHIND_BYTES: Final = 1024 * 1024
# Below this, hashing needs no thread.
_WORTH_A_THREAD_BYTES: Final = 64 * 1024


async def verified(stream: BlobStream, digest: Digest, quarantine: Quarantine) -> AsyncGenerator[bytes, None]:
    """Forward the pieces of a whole blob, the last one only once all of them match the digest.

    Only the last piece waits for hashing; unhashed pieces are held: at most 1 MiB and a piece. Raises
    DigestError if they do not match; then at least one byte was not forwarded, and the blob is in quarantine.
    """
    hashing = _Hashing()
    held = b""
    async with aclosing(hashing.follow(stream.chunks)) as pieces:
        async for piece in pieces:
            if held:
                yield held
            held = piece
    actual = await hashing.finish()
    if actual != digest:
        quarantine.add(digest)
        raise DigestError(f"{digest}: the bytes received have digest {actual}")
    if held:
        yield held


class _Hashing:
    """Hashes pieces in order, on a thread, while more arrive."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._loop = asyncio.get_running_loop()
        # The following is shared with the thread.
        self._lock = Lock()
        self._pieces: deque[bytes] = deque()
        self._behind_bytes = 0
        self._is_running = False
        self._job: asyncio.Future[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._wanted_bytes = 0  # the waiter wants to be no further behind than this

    async def follow(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Forward pieces and have them hashed; waits if hashing lags."""
        async for piece in chunks:
            if not piece:
                continue
            with self._lock:
                self._pieces.append(piece)
                self._behind_bytes += len(piece)
                behind_bytes = self._behind_bytes
                if behind_bytes >= _BATCH_BYTES:
                    self._run()
            if behind_bytes > _MOST_BEHIND_BYTES:
                await self._catch_up(_MOST_BEHIND_BYTES // 2)
            yield piece

    async def finish(self) -> Digest:
        """Return the digest of all pieces."""
        if self._is_running or self._behind_bytes >= _WORTH_A_THREAD_BYTES:
            await self._catch_up(0)
        for piece in self._pieces:
            self._hasher.update(piece)
        return Digest(self._hasher.hexdigest())

    async def _catch_up(self, wanted_bytes: int) -> None:
        with self._lock:
            if self._behind_bytes <= wanted_bytes:
                return
            self._wanted_bytes = wanted_bytes
            waiting = self._waiting = self._loop.create_future()
            self._run()
        await waiting

    def _run(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._job = self._loop.run_in_executor(None, self._hash_all)

    def _hash_all(self) -> None:
        while (piece := self._next()) is not None:
            self._hasher.update(piece)
            self._count(len(piece))

    def _next(self) -> bytes | None:
        # Under the lock: a piece that arrives as a job ends starts another.
        with self._lock:
            if self._pieces:
                return self._pieces.popleft()
            self._is_running = False
            return None

    def _count(self, size: int) -> None:
        with self._lock:
            self._behind_bytes -= size
            if self._waiting is not None and self._behind_bytes <= self._wanted_bytes:
                self._loop.call_soon_threadsafe(_wake, self._waiting)
                self._waiting = None


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():  # the waiter may have been cancelled
        waiting.set_result(None)

"""A verified stream: no wrong byte reaches a client as a whole answer.

The bytes are hashed while they pass, and the last piece is held back until the hash agrees. Source: design
section 3, promise 3.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Final

from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.errors import DigestError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.quarantine import Quarantine

# So much is hashed at a time, on a thread: to hand over less, and then to wait for the interpreter, costs
# more than it gains. Twice as much is held at most, for the next batch is collected meanwhile.
_BATCH_BYTES: Final = 512 * 1024
# Below this, it is hashed right here.
_WORTH_A_THREAD_BYTES: Final = 64 * 1024


async def verified(stream: BlobStream, digest: Digest, quarantine: Quarantine) -> AsyncGenerator[bytes, None]:
    """Pass the pieces of a whole blob on, the last one only once all of them hash to the digest.

    No piece but the last waits to be hashed, unless the thread that reads it does that. What was passed on
    and is not hashed yet is held: at most two batches of 512 KiB and a piece.

    Raises:
        DigestError: they do not; at least one byte was not passed on, and the blob is in quarantine.
    """
    hashing = _Hashing()
    pieces = hashing.follow(stream.chunks) if stream.watched is None else stream.watched(hashing.update)
    held = b""
    async with aclosing(pieces):
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
    """Hashes one batch of pieces on a thread while the next one is collected."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self.update = self._hasher.update
        self._loop = asyncio.get_running_loop()
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._running: asyncio.Future[None] | None = None

    async def follow(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Pass pieces on that are to be hashed; waits where that lags behind."""
        async for piece in chunks:
            if not piece:
                continue
            self._batch.append(piece)
            self._batch_bytes += len(piece)
            if self._batch_bytes >= _BATCH_BYTES:
                await self._start()
            yield piece

    async def finish(self) -> Digest:
        """Tell the digest of all pieces."""
        if self._batch_bytes >= _WORTH_A_THREAD_BYTES:
            await self._start()
        await self._wait()
        _update(self._hasher, self._batch)
        return Digest(self._hasher.hexdigest())

    async def _start(self) -> None:
        await self._wait()
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._running = self._loop.run_in_executor(None, _update, self._hasher, batch)

    async def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running


def _update(hasher: "hashlib._Hash", pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        hasher.update(piece)

"""Resumes a broken download from where it stopped.

The bound is progress, not time: a stream may break any number of times, but only a few times in a row without
a byte in between, and its bytes have to arrive at a minimum rate.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Final, Protocol

from nixcache_oci.clients.http.reply import RESUMED_WINDOWS, STREAM_BYTES_PER_SECOND, MinimumRate
from nixcache_oci.clients.http.translation import SlowBodyError
from nixcache_oci.clients.repository import BlobStream, Repository
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

ATTEMPTS_WITHOUT_PROGRESS: Final = 5
TABLE_HEAD_SECONDS: Final = 30.0
"""For the head of anything but a NAR: the refresh of an index waits for it."""
_FIRST_PAUSE_SECONDS: Final = 0.1
_PROBES: Final = 3
# From the registry, or from the storage that it redirects to.
_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_WINDOW_SECONDS: Final = 30.0

Sleep = Callable[[float], Awaitable[None]]


class Receiver(Protocol):
    """Receives bytes as they arrive, before verification."""

    async def begin(self, content: bytearray) -> None:
        """Take the buffer, before any bytes arrive."""

    def advance(self, arrived: int) -> None:
        """Note how many bytes of the buffer have arrived; they are not verified."""


@asynccontextmanager
async def open_resuming(
    repository: Repository,
    digest: Digest,
    start: int = 0,
    end: int | None = None,
    *,
    head_seconds: float | None = None,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[BlobStream]:
    """Open a blob like ``Repository.open_blob``, with chunks that survive a broken connection.

    Args:
        repository: that holds it.
        digest: of the blob.
        start: offset of the first byte.
        end: offset after the last byte; None for the blob's end.
        head_seconds: limit for opening it; None for the repository's own, which may be as long as for a NAR.
        sleep: waits before the stream is opened again.

    Raises:
        NotFoundError: there is no such blob.
        RegistryError: it cannot be opened; or, from the chunks, five attempts in a row brought no byte, or
            bytes arrive too slowly.
    """
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(head_seconds):
                first = await stack.enter_async_context(repository.open_blob(digest, start, end))
        except TimeoutError:
            raise RegistryError(
                f"blob {digest}: no answer within {head_seconds} s", is_temporary=True
            ) from None
        resumed = _Resumed(repository, digest, first, stack.pop_all(), sleep)
        try:
            async with aclosing(resumed.chunks()) as chunks:
                yield replace(first, chunks=chunks)
        finally:
            await resumed.close()


async def read_blob(
    repository: Repository,
    digest: Digest,
    limit: int,
    *,
    receiver: Receiver | None = None,
    head_seconds: float | None = None,
) -> bytearray:
    """Read a whole blob into memory, and check its digest; ``head_seconds`` is as for ``open_resuming``.

    The receiver follows the download, once the size is known to be within the limit.

    Raises:
        FormatError: it is larger than the limit; nothing was read.
        DigestError: the bytes do not match.
        RegistryError: it could not be read.
    """
    async with open_resuming(repository, digest, head_seconds=head_seconds) as blob:
        if blob.size > limit:
            raise FormatError(f"blob {digest}: {counted(blob.size, 'byte')}, over the limit of {limit}")
        content = await _receive(blob, receiver)
    # Hashing 16 MiB would block the event loop for 10 ms.
    await asyncio.to_thread(digest.check, content)
    return content


async def read_range(
    repository: Repository, digest: Digest, start: int, end: int, receiver: Receiver
) -> bytearray:
    """Read the bytes of a blob from ``start`` to before ``end`` into memory, unverified.

    Raises:
        RegistryError: they could not be read.
    """
    async with open_resuming(repository, digest, start, end) as blob:
        return await _receive(blob, receiver)


async def _receive(blob: BlobStream, receiver: Receiver | None) -> bytearray:
    content = bytearray(blob.end - blob.start)
    if receiver is not None:
        await receiver.begin(content)
    position = 0
    async for chunk in blob.chunks:
        content[position : position + len(chunk)] = chunk
        position += len(chunk)
        if receiver is not None:
            receiver.advance(position)
    return content


async def probe_blob(repository: Repository, digest: Digest, *, sleep: Sleep = asyncio.sleep) -> int:
    """Return a blob's size after reading its first byte: registries remember blobs that they have deleted.

    Raises:
        NotFoundError: there is no such blob.
        DigestError: the repository says that it has the blob, but sends no byte of it.
        RegistryError: the repository could not answer.
    """
    for attempt in range(1, _PROBES + 1):
        async with repository.open_blob(digest, 0, 1) as blob:
            try:
                async for _ in blob.chunks:
                    pass
            except RegistryError as error:
                if attempt == _PROBES:
                    raise DigestError(
                        f"blob {digest} is said to exist, but gives no byte: {error}"
                    ) from error
            else:
                return blob.size
        await sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError  # the last attempt has returned or raised


async def has_blob(repository: Repository, blob: Descriptor) -> bool:
    """Tell whether a blob can be read with the size that its descriptor states; RegistryError if unknown.

    A blob that the storage has lost counts as absent, so that it is sent again.
    """
    try:
        return await probe_blob(repository, blob.digest) == blob.size
    except DigestError:
        return False
    except RegistryError as error:
        status = error.status or 0
        if status in _GONE or status >= HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, NotFoundError):
            return False
        raise


class _Resumed:
    def __init__(
        self, repository: Repository, digest: Digest, first: BlobStream, opened: AsyncExitStack, sleep: Sleep
    ) -> None:
        self._repository = repository
        self._digest = digest
        self._first = first
        self._opened = opened
        self._sleep = sleep
        self._rate = MinimumRate(RESUMED_WINDOWS * _WINDOW_SECONDS, STREAM_BYTES_PER_SECOND)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        position, end = self._first.start, self._first.end
        stream: BlobStream | None = self._first
        failures = 0
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            started_at = position
            try:
                if stream is None:
                    stream = await self._reopen(position, end)
                async for chunk in stream.chunks:
                    position += len(chunk)
                    self._rate.add(len(chunk), min(clock() - began, _WINDOW_SECONDS))
                    yield chunk
                    began = clock()
            except SlowBodyError as error:
                raise RegistryError(f"blob {self._digest}: comes too slowly: {error}") from None
            except RegistryError as error:
                failures = 0 if position > started_at else failures + 1
                if not error.is_temporary or failures >= ATTEMPTS_WITHOUT_PROGRESS:
                    raise
                stream = None
                await self.close()
                jitter = random.uniform(0.5, 1)  # noqa: S311  # no secret
                await self._sleep(_FIRST_PAUSE_SECONDS * 2**failures * jitter)
            else:
                return

    async def _reopen(self, position: int, end: int) -> BlobStream:
        stream = await self._opened.enter_async_context(
            self._repository.open_blob(self._digest, position, end)
        )
        if stream.size != self._first.size:
            raise RegistryError(
                f"blob {self._digest}: {counted(stream.size, 'byte')} now, {self._first.size} before"
            )
        return stream

    async def close(self) -> None:
        await self._opened.aclose()

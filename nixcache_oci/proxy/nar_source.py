"""The source of NARs: blobs, streamed and verified or fetched ahead, and slices of packs.

Uses one chunk of memory per stream, and the bounded pack cache. Source: design section 3, promises 3, 4, 6.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACKED_NAR_BYTES, NarUrl
from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.repository import BlobStream, Repository
from nixcache_oci.clients.resume import open_resuming
from nixcache_oci.errors import DigestError, NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.verified import Quarantine, verified
from nixcache_oci.wording import counted

MOST_UNKNOWN: Final = 16
"""Concurrent requests for blobs that may not exist."""

_MAX_SIZES: Final = 4096
# A blob that was 404 twice is not requested again for a while, unless the index has changed. Once may be a
# registry's mistake.
_MISSING_SECONDS: Final = 30.0
_PIECE_BYTES: Final = 64 * 1024  # of a NAR in memory


class NarSource:
    """Opens NARs; ``generation`` returns another object once missing blobs may exist."""

    def __init__(
        self,
        repository: Repository,
        packs: PackCache,
        quarantine: Quarantine,
        generation: Callable[[], object] = lambda: None,
    ) -> None:
        self._repository = repository
        self._packs = packs
        self._quarantine = quarantine
        self._generation = generation
        self._missed_once = Quarantine(seconds=_MISSING_SECONDS)
        self._missing = Quarantine(seconds=_MISSING_SECONDS)
        self._missing_since = generation()
        self._sizes: BoundedCache[Digest, int] = BoundedCache(_MAX_SIZES)
        self._turns = asyncio.Semaphore(MOST_UNKNOWN)
        self._asking: dict[Digest, asyncio.Task[int]] = {}

    async def slice_of_pack(self, url: NarUrl) -> bytes:
        """Return a verified NAR from a pack.

        Raises NotFoundError if the pack is in quarantine; FormatError if it has no such slice; Error if it is
        not to be had.
        """
        self._check(url.blob)
        async with self._noting(url.blob):
            return await self._packs.cut_out(url.blob, *_extent(url))

    def cached(self, url: NarUrl) -> memoryview | None:
        """Return a NAR of at most 256 KiB if it is in memory; see ``PackCache.cached``."""
        if url.blob in self._quarantine:
            return None
        if url.offset is not None:
            return self._packs.cached(url.blob, *_extent(url))
        nar = self._packs.cached_nar(url.blob)
        return nar if nar is not None and len(nar) <= MAX_PACKED_NAR_BYTES else None

    async def size(self, blob: Digest) -> int:
        """Return a blob's size; concurrent calls share the request.

        Raises NotFoundError if there is no such blob, or it is in quarantine; RegistryError if there was no
        answer.
        """
        if (nar := await self._fetched_ahead(blob)) is not None:
            return len(nar)
        known = self._sizes.get(blob)
        if known is not None:
            return known
        asking = self._asking.get(blob)
        if asking is None:
            asking = asyncio.create_task(self._ask_size(blob), name=f"size {blob.hex[:12]}")
            self._asking[blob] = asking
            asking.add_done_callback(retrieve)
            asking.add_done_callback(lambda _: self._asking.pop(blob))
        return await asyncio.shield(asking)

    @asynccontextmanager
    async def whole(self, blob: Digest) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Open a whole blob: its size, and its bytes; see ``verified``.

        Raises:
            NotFoundError: there is no such blob, or it is in quarantine.
            RegistryError: it could not be opened; or, from the bytes, read on.
            DigestError: from the bytes, unless it was fetched ahead: they are wrong, and the blob is in
                quarantine.
        """
        if (nar := await self._fetched_ahead(blob)) is not None:
            yield len(nar), pieces(nar, 0, len(nar))
            return
        async with self._open(blob) as stream:
            try:
                async with aclosing(verified(stream, blob, self._quarantine)) as chunks:
                    yield stream.size, chunks
            finally:
                if blob in self._quarantine:
                    # The size may be of other content.
                    self._sizes.forget(blob)

    @asynccontextmanager
    async def part(self, blob: Digest, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a part of a blob; of a local file, after verifying the whole.

        A part from a registry cannot be verified: Nix checks NarHash. Errors are those of ``whole``.
        """
        if (nar := await self._fetched_ahead(blob)) is not None:
            yield pieces(nar, start, end)
            return
        known_size = self._sizes.get(blob)
        async with self._open(blob, start, end) as stream:
            if stream.check is not None:
                async with self._noting(blob):
                    await stream.check()
                if known_size not in (None, stream.size):
                    raise RegistryError(
                        f"blob {blob}: {counted(stream.size, 'byte')} now, {known_size} before"
                    )
            yield stream.chunks

    async def close(self) -> None:
        """Cancel running requests."""
        await cancel_all(self._asking.values())

    async def _fetched_ahead(self, blob: Digest) -> bytearray | None:
        """Return a whole NAR that was fetched ahead; None if it has to be streamed."""
        self._check(blob)
        return await self._packs.nar(blob)

    def _check(self, blob: Digest) -> None:
        if blob in self._quarantine:
            raise NotFoundError(f"blob {blob}: its bytes were wrong recently")
        if blob in self._missing and self._missing_since is self._generation():
            raise NotFoundError(f"blob {blob}: it was missing recently")

    @asynccontextmanager
    async def _open(self, blob: Digest, start: int = 0, end: int | None = None) -> AsyncIterator[BlobStream]:
        async with AsyncExitStack() as stack:
            # Requests for blobs that may not exist are bounded.
            turn: AbstractAsyncContextManager[None] = nullcontext() if blob in self._sizes else self._turns
            async with turn, self._noting(blob):
                stream = await stack.enter_async_context(open_resuming(self._repository, blob, start, end))
            self._sizes.put(blob, stream.size)
            yield stream

    async def _ask_size(self, blob: Digest) -> int:
        async with self._turns, self._noting(blob):
            size = await self._repository.stat_blob(blob)
        self._sizes.put(blob, size)
        return size

    @asynccontextmanager
    async def _noting(self, blob: Digest) -> AsyncIterator[None]:
        """Note missing blobs, and corrupt ones before a byte of them is used."""
        try:
            yield
        except DigestError:
            self._quarantine.add(blob)
            self._sizes.forget(blob)
            raise
        except NotFoundError:
            if self._missing_since is not self._generation():
                self._missing_since = self._generation()
                self._missed_once = Quarantine(seconds=_MISSING_SECONDS)
                self._missing = Quarantine(seconds=_MISSING_SECONDS)
            (self._missing if blob in self._missed_once else self._missed_once).add(blob)
            raise


async def pieces(nar: bytearray, start: int, end: int) -> AsyncIterator[bytes]:
    """Yield the bytes from ``start`` to before ``end`` of a NAR in memory."""
    for position in range(start, end, _PIECE_BYTES):
        yield bytes(memoryview(nar)[position : min(position + _PIECE_BYTES, end)])


def _extent(url: NarUrl) -> tuple[int, int]:
    start = url.offset or 0
    return start, start + (url.length or 0)

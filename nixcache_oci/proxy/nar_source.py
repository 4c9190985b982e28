"""Where the bytes of a NAR come from: a blob that streams and is verified, or a slice of a pack.

Memory use is one chunk per stream, and the bounded pack cache. Source: design section 3, promises 3, 4, 6.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from typing import Final

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.memo import Memo
from nixcache_oci.clients.repository import BlobStream, Repository
from nixcache_oci.clients.resume import open_resuming
from nixcache_oci.errors import DigestError, NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.quarantine import Quarantine
from nixcache_oci.proxy.verified import verified
from nixcache_oci.wording import counted

MOST_UNKNOWN: Final = 16
"""Blobs that the repository is asked for at once, of which nobody knows whether they are there."""

_MAX_SIZES: Final = 4096
# What the repository said twice that it has not is not asked for again so soon, unless the index has changed.
# Once may be a registry's mistake.
_MISSING_SECONDS: Final = 30.0


class NarSource:
    """Opens NARs.

    Args:
        repository: where the blobs lie.
        packs: gives packs.
        quarantine: takes the blobs that turn out wrong; what is in it is not found.
        generation: gives another object once what is not found may be there.
    """

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
        self._sizes: Memo[Digest, int] = Memo(_MAX_SIZES)
        self._turns = asyncio.Semaphore(MOST_UNKNOWN)
        self._asking: dict[Digest, asyncio.Task[int]] = {}

    async def slice_of_pack(self, url: NarUrl) -> bytes:
        """Give a NAR that lies in a pack; it was checked: by itself, or in the whole pack, or in its blocks.

        Raises:
            NotFoundError: the pack is in quarantine.
            FormatError: the slice does not lie inside the pack.
            Error: the pack could not be fetched.
        """
        self._check(url.blob)
        async with self._noting(url.blob):
            return await self._packs.cut_out(url.blob, *_extent(url))

    def cached_slice(self, url: NarUrl) -> memoryview | None:
        """Give what ``slice_of_pack`` would give at once; None where it would have to wait, or fail.

        Whoever keeps the view keeps the whole pack, which may count for nothing in the pack cache by then.
        """
        return None if url.blob in self._quarantine else self._packs.cached(url.blob, *_extent(url))

    async def size(self, blob: Digest) -> int:
        """Tell a blob's size; whoever asks for the same one meanwhile shares the request.

        Raises:
            NotFoundError: there is no such blob, or it is in quarantine.
            RegistryError: the repository could not answer.
        """
        self._check(blob)
        known = self._sizes.get(blob)
        if known is not None:
            return known
        asking = self._asking.get(blob)
        if asking is None:
            asking = asyncio.create_task(self._ask_size(blob), name=f"size {blob.hex[:12]}")
            self._asking[blob] = asking
            asking.add_done_callback(lambda task: self._keep_size(blob, task))
        return await asyncio.shield(asking)

    @asynccontextmanager
    async def whole(self, blob: Digest) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Open a whole blob: its size, and its bytes, the last of which only come if all are right.

        Raises:
            NotFoundError: there is no such blob, or it is in quarantine.
            RegistryError: it could not be opened; or, from the bytes, it could not be read on.
            DigestError: from the bytes: they are wrong; from now on the blob is in quarantine.
        """
        async with self._open(blob) as stream:
            try:
                async with aclosing(verified(stream, blob, self._quarantine)) as chunks:
                    yield stream.size, chunks
            finally:
                if blob in self._quarantine:
                    # What came was something else, and as long as that is.
                    self._sizes.forget(blob)

    @asynccontextmanager
    async def part(self, blob: Digest, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a part of a blob: of a file, once the whole of it was found right.

        Of what comes from afar it cannot be verified: Nix's NarHash is the last line.

        Raises:
            NotFoundError: there is no such blob, or it is in quarantine.
            DigestError: it is a file that is not what its digest says; from now on it is in quarantine.
            RegistryError: it could not be opened; or, from the bytes, it could not be read on.
        """
        told = self._sizes.get(blob)
        async with self._open(blob, start, end) as stream:
            if stream.check is not None:
                async with self._noting(blob):
                    await stream.check()
                if told not in (None, stream.size):
                    raise RegistryError(f"blob {blob}: {counted(stream.size, 'byte')} now, {told} before")
            yield stream.chunks

    async def close(self) -> None:
        """End what is under way."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _check(self, blob: Digest) -> None:
        if blob in self._quarantine:
            raise NotFoundError(f"blob {blob}: its bytes were wrong recently")
        if blob in self._missing and self._missing_since is self._generation():
            raise NotFoundError(f"blob {blob}: it was missing recently")

    @asynccontextmanager
    async def _open(self, blob: Digest, start: int = 0, end: int | None = None) -> AsyncIterator[BlobStream]:
        self._check(blob)
        async with AsyncExitStack() as stack:
            async with self._turn(blob), self._noting(blob):
                stream = await stack.enter_async_context(open_resuming(self._repository, blob, start, end))
            self._sizes.put(blob, stream.size)
            yield stream

    async def _ask_size(self, blob: Digest) -> int:
        async with self._turns, self._noting(blob):
            return await self._repository.stat_blob(blob)

    def _turn(self, blob: Digest) -> AbstractAsyncContextManager[None]:
        """Wait where many blobs are looked for of which nobody knows whether they are there."""
        return nullcontext() if blob in self._sizes else self._turns

    @asynccontextmanager
    async def _noting(self, blob: Digest) -> AsyncIterator[None]:
        """Note what is not found, and what turns out wrong before a byte of it is used."""
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

    def _keep_size(self, blob: Digest, task: asyncio.Task[int]) -> None:
        self._asking.pop(blob, None)
        if not task.cancelled() and task.exception() is None:
            self._sizes.put(blob, task.result())


def _extent(url: NarUrl) -> tuple[int, int]:
    start = url.offset or 0
    return start, start + (url.length or 0)

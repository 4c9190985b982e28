"""A repository in a folder: an OCI image layout, which other programs read and copy as ``oci:/path``."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Event

from nixcache_oci.clients.layout_folder import LOCK_SECONDS, LayoutFolder
from nixcache_oci.clients.repository import BlobStream, StoredManifest, Watch
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest

# So much is read and watched while it lies in the processor's cache, and so much with one change of threads.
_READ_BYTES = 256 * 1024
_BATCH_BYTES = 512 * 1024


class Layout:
    """Implements ``Repository`` over an OCI image layout; files are read and written in threads.

    Args:
        root: the folder; until the first write makes it, this is a repository that does not exist.
        lock_seconds: how long to wait for other programs that write tags.
    """

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._folder = LayoutFolder(root, lock_seconds)
        self._is_prepared = False
        # The lock between programs is waited for in a thread. One waits for all, or the pool would run dry.
        self._turn = asyncio.Lock()

    @property
    def name(self) -> str:
        """Where it is, for people: ``oci:/path``."""
        return self._folder.name

    async def resolve(self, tag_or_digest: str) -> Digest:
        """Tell which manifest a tag points at; a tag whose manifest is missing is damage."""
        return await asyncio.to_thread(self._folder.resolve, tag_or_digest)

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        """Read a manifest or image index, also one without a tag; its bytes are checked."""
        return await asyncio.to_thread(self._folder.read_manifest, tag_or_digest)

    async def list_tags(self) -> list[str]:
        """List every tag; NotFoundError until something was written."""
        return await asyncio.to_thread(self._folder.tags)

    async def stat_blob(self, digest: Digest) -> int:
        """Tell a blob's size in bytes."""
        return await asyncio.to_thread(self._folder.size_of, digest)

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes."""
        file = await self._open(digest)
        try:
            size = os.fstat(file).st_size
            stop = size if end is None else end
            if not 0 <= start <= stop <= size:
                raise RegistryError(
                    f"{self.name}: blob {digest} has {size} bytes, and no range {start}-{stop}"
                )
            read = partial(self._read, file, start, stop)
            async with aclosing(read(lambda _: None)) as chunks:
                yield BlobStream(size, start, stop, chunks, read)
        finally:
            os.close(file)

    def prepare_push(self, count: int) -> None:
        """Do nothing: a folder is near."""

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Write a blob, and check its digest meanwhile; one that is there in its whole length stays."""
        await self._prepare()
        stop = Event()
        try:
            await asyncio.to_thread(self._folder.store_blob, digest, source, stop)
        finally:
            stop.set()  # a thread cannot be cancelled: tell it that nobody waits

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        """Write a manifest or image index, and point the tag at it where one is given."""
        await self._prepare()
        async with self._turn:
            return await asyncio.to_thread(self._folder.store_manifest, tag_or_digest, content, media_type)

    async def close(self) -> None:
        """Nothing is held open between calls."""

    async def _prepare(self) -> None:
        if self._is_prepared:
            return
        async with self._turn:
            if not self._is_prepared:
                await asyncio.to_thread(self._folder.prepare)
                self._is_prepared = True

    async def _open(self, digest: Digest) -> int:
        """Open a blob's file; whoever is cancelled meanwhile leaves no open file behind."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._folder.open, digest))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def _read(self, file: int, start: int, end: int, watch: Watch) -> AsyncGenerator[bytes]:
        """Yield a part of a file; each batch is read while the one before it is made use of."""
        reading: asyncio.Future[list[bytes]] | None = None
        try:
            while start < end or reading is not None:
                batch = await asyncio.shield(reading) if reading is not None else []
                start, reading = start + sum(map(len, batch)), None
                if start < end:
                    stop = min(start + _BATCH_BYTES, end)
                    reading = asyncio.get_running_loop().run_in_executor(
                        None, self._read_batch, file, start, stop, watch
                    )
                for piece in batch:
                    yield piece
        finally:
            # The file is closed next: no thread may read what gets its number then.
            if reading is not None:
                await asyncio.wait([reading])
                reading.exception()  # nobody else will hear of it

    def _read_batch(self, file: int, start: int, end: int, watch: Watch) -> list[bytes]:
        pieces = []
        while start < end:
            piece = self._folder.read_at(file, min(_READ_BYTES, end - start), start)
            watch(piece)
            pieces.append(piece)
            start += len(piece)
        return pieces


def _close_opened(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())

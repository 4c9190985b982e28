"""A repository in a folder: an OCI image layout, which other programs read and copy as ``oci:/path``."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from threading import Event

from nixcache_oci.clients.layout_check import FileChecks
from nixcache_oci.clients.layout_file import LayoutFile, one_ahead
from nixcache_oci.clients.layout_folder import LOCK_SECONDS, LayoutFolder
from nixcache_oci.clients.repository import BlobStream, StoredManifest
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# So much with one change of threads.
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
        self._checks = FileChecks()
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
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes.

        A file that has a second name (a hard link) may be anything: it is hashed first, and a DigestError if
        it is not the blob.
        """
        file = await self._open(digest)
        try:
            size = file.size()
            stop = size if end is None else end
            if not 0 <= start <= stop <= size:
                raise RegistryError(
                    f"{self.name}: blob {digest} has {counted(size, 'byte')}, but no range {start}-{stop}"
                )
            if file.has_second_name():
                await self._checks.check(digest, file)
            # Its end is waited for before the file is closed: no thread may read what gets its number then.
            async with aclosing(_read(file, start, stop)) as chunks:
                yield BlobStream(size, start, stop, chunks, check=partial(self._checks.check, digest, file))
        finally:
            file.close()

    def prepare_push(self, count: int) -> None:
        """Do nothing: a folder is near."""

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Write a blob, and check its digest meanwhile; one that is there in its whole length stays."""
        await self._prepare()
        with stopping() as stop:
            await asyncio.to_thread(self._folder.store_blob, digest, source, stop)

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        """Write a manifest or image index, and point the tag at it where one is given."""
        await self._prepare()
        async with self._turn:
            with stopping() as stop:
                return await asyncio.to_thread(
                    self._folder.store_manifest, tag_or_digest, content, media_type, stop
                )

    async def close(self) -> None:
        """End what still reads."""
        await self._checks.close()

    async def _prepare(self) -> None:
        if self._is_prepared:
            return
        async with self._turn:
            if not self._is_prepared:
                with stopping() as stop:
                    await asyncio.to_thread(self._folder.prepare, stop)
                self._is_prepared = True

    async def _open(self, digest: Digest) -> LayoutFile:
        """Open a blob's file; whoever is cancelled meanwhile leaves no open file behind."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._folder.open, digest))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise


@contextmanager
def stopping() -> Iterator[Event]:
    """Tell a thread that nobody waits for it any more: it cannot be cancelled."""
    stop = Event()
    try:
        yield stop
    finally:
        stop.set()


def _read(file: LayoutFile, start: int, end: int) -> AsyncGenerator[bytes]:
    places = range(start, end, _BATCH_BYTES)
    return one_ahead(partial(file.read, place, min(place + _BATCH_BYTES, end)) for place in places)


def _close_opened(opening: asyncio.Future[LayoutFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()

"""A repository in a folder: an OCI image layout, which other programs read and copy as ``oci:/path``."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from threading import Event

from nixcache_oci.clients.layout_file import FileChecks, LayoutFile, one_ahead
from nixcache_oci.clients.layout_folder import LOCK_SECONDS, LayoutFolder
from nixcache_oci.clients.repository import BlobStream, StoredManifest
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# Read by one job on a thread.
_BATCH_BYTES = 512 * 1024


class Layout:
    """Implements ``Repository`` over an OCI image layout; files are read and written in threads.

    Until the first write creates the folder, the repository does not exist.
    """

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._folder = LayoutFolder(root, lock_seconds)
        self._is_prepared = False
        self._checks = FileChecks()
        # The lock between programs is waited for in a thread: in one, or waiters would use up the pool.
        self._turn = asyncio.Lock()

    @property
    def name(self) -> str:
        """Where it is, for people: ``oci:/path``."""
        return self._folder.name

    @property
    def can_list_untagged(self) -> bool:
        """``index.json`` names them, and removing takes what it does not name."""
        return True

    @property
    def keeps_listed(self) -> bool:
        """Removing takes no notice of what an index lists."""
        return False

    async def resolve(self, tag_or_digest: str) -> Digest:
        """Return the digest of the manifest that a tag points at; a missing manifest is damage."""
        return await asyncio.to_thread(self._folder.resolve, tag_or_digest)

    async def get_manifest(self, tag_or_digest: str) -> StoredManifest:
        """Read a manifest or image index, with or without a tag, and check its bytes."""
        return await asyncio.to_thread(self._folder.read_manifest, tag_or_digest)

    async def list_tags(self) -> list[str]:
        """List every tag; NotFoundError until the first write."""
        return await asyncio.to_thread(self._folder.tags)

    async def stat_blob(self, digest: Digest) -> int:
        """Return a blob's size in bytes."""
        return await asyncio.to_thread(self._folder.size_of, digest)

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """Open a blob from ``start`` to before ``end`` (None: its end), both in bytes.

        A file that has a second name (a hard link) may be anything: it is hashed first, and DigestError
        raised if it is not the blob. Raises RegistryError if the blob cannot be read, or has no such range.
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
            # Ends before the file is closed: a thread could read from another file that gets its descriptor.
            async with aclosing(_read(file, start, stop)) as chunks:
                yield BlobStream(size, start, stop, chunks, check=partial(self._checks.check, digest, file))
        finally:
            file.close()

    def prepare_push(self, count: int) -> None:
        """Do nothing: a folder has no round trips to save."""

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        """Write a blob, and check its digest meanwhile; one that is there with the same size is kept."""
        await self._prepare()
        with stopping() as stop:
            await asyncio.to_thread(self._folder.store_blob, digest, source, stop)

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        """Write a manifest or image index, and point the tag at it if one is given."""
        await self._prepare()
        async with self._turn:
            with stopping() as stop:
                return await asyncio.to_thread(
                    self._folder.store_manifest, tag_or_digest, content, media_type, stop
                )

    async def close(self) -> None:
        """Cancel checks of files that are under way."""
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
        """Open a blob's file; cancellation leaves no open file behind."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._folder.open, digest))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise


@contextmanager
def stopping() -> Iterator[Event]:
    """Yield an event that tells a thread to stop, since it cannot be cancelled; set at the end."""
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

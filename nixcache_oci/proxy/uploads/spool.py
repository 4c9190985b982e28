"""The spool: what was uploaded and is not published yet.

A crash loses nothing that was acknowledged: a narinfo is in the journal by then, and its NAR with it, or in a
file that is on the disk. A small NAR waits for its narinfo in memory, and is lost in a crash: its narinfo is
then refused, and the client sends both again. The index of all this is in memory, and changes on the event
loop only.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING, Final, Self

from nixcache_oci.cache.nar_url import SUFFIXES
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.clients.durable_file import locked
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import RegistryError, UsageError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.proxy.uploads.intake import Measured, measure
from nixcache_oci.proxy.uploads.interface import UploadRefusedError
from nixcache_oci.proxy.uploads.journal import Journal, Kind
from nixcache_oci.proxy.uploads.leftovers import FOLDER_MODE, load
from nixcache_oci.proxy.uploads.nar_files import NarFiles, disk_errors, format_errors, full
from nixcache_oci.proxy.uploads.spooled import SpooledNar, SpooledPath

if TYPE_CHECKING:
    from nixcache_oci.nix.store_path import HashPart

SMALL_NAR_BYTES: Final = 256 * 1024
MOST_MEMORY_BYTES: Final = 32 * 1024 * 1024
"""Small NARs wait in memory for their narinfos, together up to so many bytes; others in files."""

MOST_ORPHANS: Final = 10_000
ORPHAN_SECONDS: Final = 24 * 3600
"""NARs without a narinfo: so many, for so long; the oldest go first."""

MOST_PATHS: Final = 50_000
"""Narinfos in the spool: each is held in memory, too."""

_LOCK_SECONDS: Final = 5.0


class Spool:
    """Everything that was uploaded and is not published; open it with ``opened``.

    Attributes:
        folder: of it.
        paths: with their NARs, the oldest first.
        signed: narinfos whose NARs the cache has.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.folder = RootedPath(path)
        self.paths: dict[HashPart, SpooledPath] = {}
        self.signed: dict[HashPart, SpooledPath] = {}
        self._journal = Journal(self.folder / "journal")
        self._files = NarFiles(self.folder)
        self._nars: dict[str, SpooledNar] = {}
        self._orphans: dict[str, None] = {}
        self._most_bytes = most_bytes
        self._bytes = 0  # of NARs outside the journal, and of those that are arriving
        self._memory_bytes = 0  # of those of them that are in memory
        self._moving = asyncio.Lock()  # held while files get and lose their names

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path, most_bytes: int) -> AsyncIterator[Self]:
        """Open a spool, with what an earlier run left in it, for as long as the block runs.

        Raises UsageError if the folder cannot be used, or another program uses it.
        """
        spool = cls(path, most_bytes)
        lock = _held(spool.folder)
        with _settings_errors(path):
            await asyncio.to_thread(lock.__enter__)
        try:
            with _settings_errors(path):
                await spool._load()  # its own class
            yield spool
            await asyncio.to_thread(spool._save_orphans)
        finally:
            spool._files.close()
            lock.__exit__(None, None, None)

    @property
    def used_bytes(self) -> int:
        """Bytes of all that is kept, NARs that are arriving included."""
        return self._bytes + self._journal.size

    @property
    def orphans(self) -> int:
        """Number of NARs that no narinfo names yet."""
        return len(self._orphans)

    def find_nar(self, file_hash_hex: str) -> SpooledNar | None:
        """Return the NAR with this FileHash."""
        return self._nars.get(file_hash_hex)

    def open_nar(self, nar: SpooledNar) -> IO[bytes]:
        """Open a NAR for reading; blocks, OSError if it is gone."""
        if (content := nar.content) is not None:
            return BytesIO(content)
        if nar.place is not None:
            return BytesIO(self._journal.read(nar.place))
        return self._files.open(nar.measured, nar.suffix)

    async def take_nar(
        self, chunks: AsyncIterator[bytes], size: int, file_hash_hex: str, compression: str
    ) -> None:
        """Take a NAR in, if its hash and size are right.

        Raises UploadRefusedError if it is wrong, or there is no space.
        """
        with self._reserved(size) as reserved:
            if size <= SMALL_NAR_BYTES and self._memory_bytes + size <= MOST_MEMORY_BYTES:
                reserved.memory_size = size
                self._memory_bytes += size
                content = b"".join([chunk async for chunk in chunks])
                with format_errors():
                    measured = await measure(content, compression)
                nar = _check(measured, size, file_hash_hex, compression)
                if file_hash_hex not in self._nars:
                    nar.content = content
                    self._add_orphan(nar, reserved)
            else:
                await self._take_file(chunks, size, file_hash_hex, compression, reserved)
        await self.drop_old_orphans()

    async def add_path(self, narinfo: NarInfo, nar: SpooledNar) -> None:
        """Add, or replace, the narinfo of a NAR; once this returns, both survive a power cut.

        Raises UploadRefusedError if the disk is full, or the NAR is gone.
        """
        part, text = narinfo.store_path.hash_part, narinfo.render().encode()
        if part not in self.paths and len(self.paths) >= MOST_PATHS:
            raise UploadRefusedError(
                f"{MOST_PATHS} paths wait to be published already: try again later",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        if self._nars.get(nar.hex) is not nar:
            raise UploadRefusedError("its NAR is gone: upload it again")
        self._orphans.pop(nar.hex, None)
        nar.uses += 1
        try:
            with disk_errors():
                if nar.content is None and nar.place is None and part not in self.paths:
                    await run_in_thread(self._files.sync, nar.measured, nar.suffix)
                place = await self._journal.append(Kind.PATH, text, nar.content or b"")
        except BaseException:
            nar.uses -= 1
            if not nar.uses:
                self._orphans[nar.hex] = None
            raise
        if place.size and nar.place is None:
            self._journal.need(place)
            nar.place = place  # before it leaves memory: it may be opened on a thread meanwhile
            self._forget_memory(nar)
        before = self.paths.get(part)
        self.paths[part] = SpooledPath(narinfo, text, nar, place)
        if before is not None:
            await self._forget(before)

    async def add_signatures(self, narinfo: NarInfo) -> None:
        """Add, or replace, a narinfo whose NAR the cache has; durable and refused as by ``add_path``."""
        part, text = narinfo.store_path.hash_part, narinfo.render().encode()
        is_full = part not in self.signed and len(self.signed) >= MOST_PATHS
        if is_full or self.used_bytes + len(text) > self._most_bytes:
            raise full("too many signatures wait to be published")
        with disk_errors():
            place = await self._journal.append(Kind.SIGNATURES, text)
        before = self.signed.get(part)
        self.signed[part] = SpooledPath(narinfo, text, None, place)
        if before is not None:
            await self._forget(before)

    async def remove(self, paths: Iterable[SpooledPath]) -> None:
        """Remove paths that are published, unless one was replaced meanwhile; OSError if the disk fails."""
        gone = []
        for path in paths:
            found = self.paths if path.nar is not None else self.signed
            if found.get(path.hash_part) is path:
                del found[path.hash_part]
                kind = Kind.PATH_GONE if path.nar is not None else Kind.SIGNATURES_GONE
                self._journal.note(path.place, kind, path.hash_part.encode())
                gone.append(path)
        # Before their NARs: a narinfo without one would be a broken promise.
        await self._journal.settle()
        for path in gone:
            await self._forget(path)
        await self._journal.settle()

    async def drop_old_orphans(self) -> None:
        """Drop NARs whose narinfo has not come for a day, and the oldest beyond the limit."""
        oldest = time.time() - ORPHAN_SECONDS
        while self._orphans:
            nar = self._nars[next(iter(self._orphans))]
            if len(self._orphans) <= MOST_ORPHANS and nar.since > oldest:
                return
            del self._orphans[nar.hex]
            nar.uses += 1
            await self._release(nar)

    async def _take_file(
        self,
        chunks: AsyncIterator[bytes],
        size: int,
        file_hash_hex: str,
        compression: str,
        reserved: "_Reserved",
    ) -> None:
        async with self._files.written(chunks, compression) as (file, measured):
            nar = _check(measured, size, file_hash_hex, compression)
            async with self._moving:
                if file_hash_hex not in self._nars:
                    with disk_errors():
                        await run_in_thread(self._files.keep, file, measured, nar.suffix)
                    self._add_orphan(nar, reserved)

    @contextmanager
    def _reserved(self, size: int) -> Iterator["_Reserved"]:
        if self.used_bytes + size > self._most_bytes:
            raise full("NIXCACHE_UPLOAD_SPACE is used up by what is not published yet")
        self._bytes += size
        reserved = _Reserved()
        try:
            yield reserved
        finally:
            if not reserved.is_kept:
                self._bytes -= size
                self._memory_bytes -= reserved.memory_size

    def _add_orphan(self, nar: SpooledNar, reserved: "_Reserved") -> None:
        self._nars[nar.hex] = nar
        self._orphans[nar.hex] = None
        reserved.is_kept = True

    async def _forget(self, path: SpooledPath) -> None:
        """Need a path no longer."""
        self._journal.release(path.place)
        if path.nar is not None:
            await self._release(path.nar)

    async def _release(self, nar: SpooledNar) -> None:
        nar.uses -= 1
        if nar.uses:
            return
        if nar.place is not None:
            del self._nars[nar.hex]
            self._journal.release(nar.place)
        elif nar.content is not None:
            del self._nars[nar.hex]
            self._forget_memory(nar)
        else:
            async with self._moving:
                if self._is_unused(nar):
                    del self._nars[nar.hex]
                    self._bytes -= nar.measured.file_size
                    await run_in_thread(self._files.remove, nar.measured, nar.suffix)

    def _is_unused(self, nar: SpooledNar) -> bool:
        return not nar.uses and self._nars.get(nar.hex) is nar

    def _forget_memory(self, nar: SpooledNar) -> None:
        nar.content = None
        self._bytes -= nar.measured.file_size
        self._memory_bytes -= nar.measured.file_size

    async def _load(self) -> None:
        left = await asyncio.to_thread(load, self.folder, self._journal, self._files)
        self.paths, self.signed, self._nars = left.paths, left.signed, left.nars
        for path in (*self.paths.values(), *self.signed.values()):
            self._journal.need(path.place)
        for nar in self._nars.values():
            if nar.place is not None:
                self._journal.need(nar.place)
            else:
                self._bytes += nar.measured.file_size
            if not nar.uses:
                self._orphans[nar.hex] = None
        await self._journal.settle()

    def _save_orphans(self) -> None:
        """Put what is in memory into files; blocks."""
        for nar in self._nars.values():
            if (content := nar.content) is not None:
                with suppress(OSError), (file := self._files.new()).create() as opened:  # as in a crash
                    opened.write(content)
                    opened.flush()
                    self._files.keep(file, nar.measured, nar.suffix)


class _Reserved:
    """Space that is given back, unless it is kept."""

    is_kept = False
    memory_size = 0  # of it, in memory


@contextmanager
def _settings_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RegistryError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"uploads: {path}: {reason}; see NIXCACHE_UPLOAD_DIR") from None


@contextmanager
def _held(folder: RootedPath) -> Iterator[None]:
    folder.make_folder(FOLDER_MODE)
    with locked(folder / "lock", _LOCK_SECONDS, Event()):
        yield


def _check(measured: Measured, size: int, file_hash_hex: str, compression: str) -> SpooledNar:
    if (measured.file_hash.digest_hex, measured.file_size) != (file_hash_hex, size):
        raise UploadRefusedError("the file is not the one that its name says: another FileHash")
    return SpooledNar(measured, SUFFIXES[compression], time.time())

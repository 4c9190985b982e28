"""The spool: what was uploaded and is not published yet, in a folder that is a binary cache itself.

A crash loses nothing that was acknowledged: a narinfo and its NAR are on the disk by then. NARs without a
narinfo wait in ``waiting/``, and their names say what was measured; unsynced, they are dropped if the machine
was started anew. ``signatures/`` is a second cache of narinfos alone, whose NARs the registry has.
The index of all this is in memory, and changes on the event loop only; ``_moving`` is held to move files.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from stat import S_ISREG
from threading import Event
from typing import IO, Final, Self

from nixcache_oci.cache.nar_url import SUFFIXES
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.clients.binary_cache.source import MAX_NARINFO_BYTES
from nixcache_oci.clients.durable_file import locked, unfinished_name, write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError, RegistryError, UsageError
from nixcache_oci.nix.base32 import CHARACTER
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.uploads.intake import DiskError, Measured, take_in
from nixcache_oci.proxy.uploads.interface import UploadRefusedError

_log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 16
"""NARs taken in at once: each has a thread; further ones wait."""

TURN_SECONDS: Final = 240.0
"""For which one waits: Nix gives up after 300 s."""

MOST_ORPHANS: Final = 10_000
ORPHAN_SECONDS: Final = 24 * 3600
"""NARs without a narinfo: so many, for so long; the oldest go first."""

MOST_PATHS: Final = 50_000
"""Narinfos in the spool: each is held in memory, too."""

_MODE: Final = 0o700
_LOCK_SECONDS: Final = 5.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_TEMPORARY: Final = "incoming"
_SUFFIX: Final = ".narinfo"
_WAITING: Final = re.compile(rf"([0-9a-f]{{64}})-({CHARACTER}{{52}})-([0-9]{{1,20}})\.nar(\.[a-z0-9]+)?")


@dataclass(slots=True, eq=False)
class SpooledNar:
    """One compressed NAR."""

    measured: Measured
    suffix: str  # of its compression, as in ``SUFFIXES``
    since: float  # when it came, in seconds of ``time.time()``
    paths: set[HashPart] = field(default_factory=set)  # of the narinfos that name it

    @property
    def hex(self) -> str:
        """FileHash in hex."""
        return self.measured.file_hash.digest_hex

    @property
    def url(self) -> str:
        """Where it is, as narinfos say."""
        return f"nar/{self.hex}.nar{self.suffix}"

    @property
    def waiting_name(self) -> str:
        """Name of its file while no narinfo names it."""
        nar_hash = str(self.measured.nar_hash).partition(":")[2]
        return f"{self.hex}-{nar_hash}-{self.measured.nar_size}.nar{self.suffix}"


@dataclass(frozen=True, slots=True, eq=False)
class SpooledPath:
    """One narinfo, as it is served."""

    narinfo: NarInfo
    text: bytes
    nar: SpooledNar | None  # None if only signatures are added to what the cache lists


class Spool:
    """Everything that was uploaded and is not published; open it with ``opened``.

    Attributes:
        path: of the folder; ``signatures`` of the one for narinfos alone.
        paths: with their NARs, the oldest first.
        signed: narinfos whose NARs the cache has.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.signatures = path / "signatures"
        self.rooted = RootedPath(path)
        self.paths: dict[HashPart, SpooledPath] = {}
        self.signed: dict[HashPart, SpooledPath] = {}
        self._nars: dict[str, SpooledNar] = {}
        self._orphans: dict[str, None] = {}
        self._most_bytes = most_bytes
        self._bytes = 0  # of all NARs, and of those that are arriving
        self._moving = asyncio.Lock()
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="upload")

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path, most_bytes: int) -> AsyncIterator[Self]:
        """Open a spool, with what an earlier run left in it, for as long as the block runs.

        Raises UsageError if the folder cannot be used, or another program uses it.
        """
        spool = cls(path, most_bytes)
        lock = _held(spool.rooted)
        try:
            await asyncio.to_thread(lock.__enter__)
        except (OSError, RegistryError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise UsageError(f"uploads: {path}: {reason}; see NIXCACHE_UPLOAD_DIR") from None
        try:
            await asyncio.to_thread(spool._load)  # its own class
            yield spool
        finally:
            spool._threads.shutdown()
            lock.__exit__(None, None, None)

    @property
    def used_bytes(self) -> int:
        """Bytes of NARs, those that are arriving included."""
        return self._bytes

    @property
    def orphans(self) -> int:
        """Number of NARs that no narinfo names yet."""
        return len(self._orphans)

    def find_nar(self, file_hash_hex: str) -> SpooledNar | None:
        """Return the NAR with this FileHash."""
        return self._nars.get(file_hash_hex)

    def open_nar(self, nar: SpooledNar) -> IO[bytes]:
        """Open a NAR for reading; blocks, OSError if it is gone."""
        return os.fdopen(self._locate(nar).open(), "rb")

    async def take_nar(
        self, chunks: AsyncIterator[bytes], size: int, file_hash_hex: str, compression: str
    ) -> None:
        """Take a NAR in, if its hash and size are right, and put it on the disk.

        Raises UploadRefusedError if it is wrong, or there is no space.
        """
        async with self._turn():
            with self._reserved(size) as reserved:
                temporary = self.rooted / _TEMPORARY / unfinished_name()
                try:
                    measured = await self._write(temporary, chunks, compression)
                    if (measured.file_hash.digest_hex, measured.file_size) != (file_hash_hex, size):
                        raise UploadRefusedError(
                            "the file is not the one that its name says: another FileHash"
                        )
                    nar = SpooledNar(measured, SUFFIXES[compression], time.time())
                    async with self._moving:
                        if file_hash_hex not in self._nars:
                            waiting = self.rooted / "waiting" / nar.waiting_name
                            await run_in_thread(temporary.replace, waiting)
                            self._add_orphan(nar)
                            reserved.keep()
                            await self._drop_orphans()
                finally:
                    await run_in_thread(_remove, temporary)

    async def add_path(self, narinfo: NarInfo, nar: SpooledNar) -> None:
        """Add, or replace, the narinfo of a NAR; once this returns, both survive a power cut.

        Raises UploadRefusedError if the disk is full, or the NAR is gone.
        """
        part = narinfo.store_path.hash_part
        if part not in self.paths and len(self.paths) >= MOST_PATHS:
            raise UploadRefusedError(
                f"{MOST_PATHS} paths wait to be published already: try again later",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        async with self._moving:
            if self._nars.get(nar.hex) is not nar:
                raise UploadRefusedError("its NAR is gone: upload it again")
            if not nar.paths:
                with _disk_errors():
                    target = self.rooted / "nar" / f"{nar.hex}.nar{nar.suffix}"
                    await run_in_thread((self.rooted / "waiting" / nar.waiting_name).replace, target)
                self._orphans.pop(nar.hex, None)
            nar.paths.add(part)
        text = narinfo.render().encode()
        try:
            with _disk_errors():
                await self._save(self.rooted, part, text, nar)
        except BaseException:
            if part not in self.paths:
                async with self._moving:
                    await self._release(nar, part)
            raise
        self.paths[part] = SpooledPath(narinfo, text, nar)

    async def add_signatures(self, narinfo: NarInfo) -> None:
        """Add, or replace, a narinfo whose NAR the cache has; durable and refused as by ``add_path``."""
        part, text = narinfo.store_path.hash_part, narinfo.render().encode()
        if part not in self.signed and len(self.signed) >= MOST_PATHS:
            raise UploadRefusedError("too much waits to be published: try again later")
        with _disk_errors():
            await self._save(self.rooted / "signatures", part, text)
        self.signed[part] = SpooledPath(narinfo, text, None)

    async def remove(self, path: SpooledPath) -> None:
        """Remove a path that is published, unless it was replaced meanwhile."""
        part, nar = path.narinfo.store_path.hash_part, path.nar
        if nar is None:
            if self.signed.get(part) is path:
                del self.signed[part]
                await run_in_thread((self.rooted / "signatures" / f"{part}{_SUFFIX}").unlink, missing_ok=True)
            return
        async with self._moving:
            if self.paths.get(part) is not path:
                return
            del self.paths[part]
            # The narinfo first: without its NAR, it would be a broken promise.
            await run_in_thread((self.rooted / f"{part}{_SUFFIX}").unlink, missing_ok=True)
            await self._release(nar, part)

    async def drop_old_orphans(self) -> None:
        """Drop NARs whose narinfo has not come for a day."""
        async with self._moving:
            await self._drop_orphans()

    async def _write(self, temporary: RootedPath, chunks: AsyncIterator[bytes], compression: str) -> Measured:
        with _disk_errors():
            file = await run_in_thread(temporary.create)
            with file:
                try:
                    measured = await take_in(chunks, compression, file, self._threads)
                except FormatError as error:
                    raise UploadRefusedError(str(error)) from None
                except DiskError as error:
                    raise _full(str(error)) from None
                await run_in_thread(file.flush)
        return measured

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise UploadRefusedError("too many uploads at once: try again", HTTPStatus.FORBIDDEN) from None
        try:
            yield
        finally:
            self._turns.release()

    @contextmanager
    def _reserved(self, size: int) -> Iterator["_Reserved"]:
        if self._bytes + size > self._most_bytes:
            raise _full("NIXCACHE_UPLOAD_SPACE is used up by what is not published yet")
        self._bytes += size
        reserved = _Reserved()
        try:
            yield reserved
        finally:
            if not reserved.is_kept:
                self._bytes -= size

    async def _release(self, nar: SpooledNar, part: HashPart) -> None:
        nar.paths.discard(part)
        if not nar.paths:
            del self._nars[nar.hex]
            self._bytes -= nar.measured.file_size
            await run_in_thread((self.rooted / "nar" / f"{nar.hex}.nar{nar.suffix}").unlink, missing_ok=True)

    def _add_orphan(self, nar: SpooledNar) -> None:
        self._nars[nar.hex] = nar
        self._orphans[nar.hex] = None

    async def _drop_orphans(self) -> None:
        oldest = time.time() - ORPHAN_SECONDS
        while self._orphans:
            nar = self._nars[next(iter(self._orphans))]
            if len(self._orphans) <= MOST_ORPHANS and nar.since > oldest:
                return
            del self._orphans[nar.hex], self._nars[nar.hex]
            self._bytes -= nar.measured.file_size
            await run_in_thread((self.rooted / "waiting" / nar.waiting_name).unlink, missing_ok=True)

    def _locate(self, nar: SpooledNar) -> RootedPath:
        if nar.paths:
            return self.rooted / "nar" / f"{nar.hex}.nar{nar.suffix}"
        return self.rooted / "waiting" / nar.waiting_name

    async def _save(
        self, folder: RootedPath, part: HashPart, text: bytes, nar: SpooledNar | None = None
    ) -> None:
        """Write a narinfo, and wait until it and its NAR are on the disk."""
        path = folder / f"{part}{_SUFFIX}"
        if nar is None or part in self.paths:
            await run_in_thread(write_file, path, [text], self.rooted / _TEMPORARY)
            await run_in_thread(folder.sync)
            return
        # Written first, and synced at once: file systems join what is asked for at the same time. A torn
        # narinfo was not acknowledged, and is dropped at the start.
        await run_in_thread(_write, path, text)
        files, folders = (path, self._locate(nar)), (folder, self.rooted / "nar")
        await asyncio.gather(
            *(run_in_thread(_sync, file) for file in files), *(run_in_thread(each.sync) for each in folders)
        )

    # At the start, on a thread

    def _load(self) -> None:
        for name in ("nar", "waiting", "signatures", _TEMPORARY):
            (self.rooted / name).make_folder(_MODE)
        for path, _ in list((self.rooted / _TEMPORARY).entries()):
            path.unlink()
        files = {path.name: status for path, status in (self.rooted / "nar").entries()}
        for folder, found in ((self.rooted, self.paths), (self.rooted / "signatures", self.signed)):
            listed = [
                (status.st_mtime, path)
                for path, status in folder.entries()
                if path.name.endswith(_SUFFIX) and S_ISREG(status.st_mode)
            ]
            for _, path in sorted(listed, key=lambda one: one[0]):
                loaded = self._load_path(path, files if folder == self.rooted else None)
                if loaded is not None:
                    found[loaded.narinfo.store_path.hash_part] = loaded
        for name in files.keys() - {f"{nar.hex}.nar{nar.suffix}" for nar in self._nars.values()}:
            (self.rooted / "nar" / name).unlink()  # no narinfo names it: none was acknowledged
        waiting = sorted((self.rooted / "waiting").entries(), key=lambda one: one[1].st_mtime)
        boot, marker = _boot(), self.rooted / "boot"
        is_same = boot != b"" and marker.stat() is not None and marker.read_bytes(len(boot)) == boot
        for path, status in waiting:
            if is_same:
                self._load_orphan(path, status)
            else:
                path.unlink()
        write_file(marker, [boot], self.rooted / _TEMPORARY)

    def _load_path(self, path: RootedPath, files: dict[str, os.stat_result] | None) -> SpooledPath | None:
        try:
            text = path.read_bytes(MAX_NARINFO_BYTES)
            narinfo = NarInfo.parse(text)
            part = HashPart(path.name.removesuffix(_SUFFIX))
        except FormatError as error:
            _tell_unusable(path, str(error))
            return None
        if narinfo.store_path.hash_part != part:
            _tell_unusable(path, "it is about another path")
            return None
        if files is None:
            return SpooledPath(narinfo, text, None)
        status = files.get(narinfo.url.removeprefix("nar/"))
        if status is None or narinfo.file_hash is None or status.st_size != narinfo.file_size:
            _tell_unusable(path, "its NAR is missing, or has another size")
            return None
        hex_ = narinfo.file_hash.digest_hex
        nar = self._nars.get(hex_)
        if nar is None:
            measured = Measured(narinfo.file_hash, status.st_size, narinfo.nar_hash, narinfo.nar_size)
            nar = self._nars[hex_] = SpooledNar(measured, SUFFIXES[narinfo.compression], status.st_mtime)
            self._bytes += status.st_size
        nar.paths.add(part)
        return SpooledPath(narinfo, text, nar)

    def _load_orphan(self, path: RootedPath, status: os.stat_result) -> None:
        match = _WAITING.fullmatch(path.name)
        if match is None or match[1] in self._nars or not S_ISREG(status.st_mode):
            path.unlink()
            return
        measured = Measured(
            NixHash(bytes.fromhex(match[1])),
            status.st_size,
            NixHash.parse(f"sha256:{match[2]}"),
            int(match[3]),
        )
        self._add_orphan(SpooledNar(measured, match[4] or "", status.st_mtime))
        self._bytes += status.st_size


class _Reserved:
    """Space that is given back, unless it is kept."""

    is_kept = False

    def keep(self) -> None:
        self.is_kept = True


@contextmanager
def _held(folder: RootedPath) -> Iterator[None]:
    folder.make_folder(_MODE)
    with locked(folder / "lock", _LOCK_SECONDS, Event()):
        yield


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        raise  # the client's, whose body is read meanwhile
    except OSError as error:
        _log.error("spool not written", extra={"fields": {"error": str(error)}})
        raise _full(error.strerror or "the disk failed") from None


def _full(reason: str) -> UploadRefusedError:
    # Not 507: at 5xx, some versions of Nix hang.
    return UploadRefusedError(
        f"the spool has no space for it: {reason}; try again later", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    )


def _tell_unusable(path: RootedPath, reason: str) -> None:
    _log.error("spooled path not usable", extra={"fields": {"path": str(path), "error": reason}})


def _write(path: RootedPath, text: bytes) -> None:
    path.unlink(missing_ok=True)  # one that was torn, or could not be synced
    with path.create() as file:
        file.write(text)


def _sync(path: RootedPath) -> None:
    with os.fdopen(path.open(), "rb") as file:
        os.fsync(file.fileno())


def _boot() -> bytes:
    """Name this start of the machine; empty where that is not known."""
    with suppress(OSError):
        return _BOOT.read_bytes().strip()
    return b""


def _remove(path: RootedPath) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)

"""NARs in files of their own, in one folder; their names say what was measured.

Unsynced ones are as good as their name while the machine runs: after another start of it, those that no
narinfo names are dropped.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from stat import S_ISREG
from typing import IO, Final

from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.clients.durable_file import unfinished_name, write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import CHARACTER
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.proxy.uploads.intake import DiskError, Measured, take_in
from nixcache_oci.proxy.uploads.interface import UploadRefusedError

MOST_AT_ONCE: Final = 16
"""NARs that arrive at once: each has a thread; further ones wait."""

TURN_SECONDS: Final = 240.0
"""For which one waits: Nix gives up after 300 s."""

_log = logging.getLogger(__name__)

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_NAME: Final = re.compile(rf"([0-9a-f]{{64}})-({CHARACTER}{{52}})-([0-9]{{1,20}})\.nar(\.[a-z0-9]+)?")


class NarFiles:
    """The folder, with temporary files and a marker beside it.

    All but ``written`` block, and raise OSError; call ``close`` in the end.
    """

    def __init__(self, folder: RootedPath) -> None:
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="upload")
        self._folder = folder / "nar"
        self._incoming = folder / "incoming"
        self._marker = folder / "boot"

    def make(self, mode: int) -> None:
        """Make the folders."""
        for folder in (self._folder, self._incoming):
            folder.make_folder(mode)

    def close(self) -> None:
        """Wait for all threads."""
        self._threads.shutdown()

    @asynccontextmanager
    async def written(
        self, chunks: AsyncIterator[bytes], compression: str
    ) -> AsyncIterator[tuple[RootedPath, Measured]]:
        """Write a NAR to a temporary file and measure it; the file goes with the block, if it is not kept.

        Raises UploadRefusedError if it is no NAR, there is no space, or too many NARs arrive.
        """
        temporary = self.new()
        async with self._turn():
            try:
                with disk_errors(), format_errors(), await run_in_thread(temporary.create) as file:
                    measured = await take_in(chunks, compression, file, self._threads)
                    await run_in_thread(file.flush)
                yield temporary, measured
            finally:
                await run_in_thread(_remove, temporary)

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

    def new(self) -> RootedPath:
        """Name a temporary file, which is not there yet."""
        return self._incoming / unfinished_name()

    def keep(self, file: RootedPath, measured: Measured, suffix: str) -> None:
        """Give a whole file its name."""
        file.replace(self._path(measured, suffix))

    def open(self, measured: Measured, suffix: str) -> IO[bytes]:
        """Open one for reading."""
        return os.fdopen(self._path(measured, suffix).open(), "rb")

    def sync(self, measured: Measured, suffix: str) -> None:
        """Make one survive a power cut."""
        with self.open(measured, suffix) as file:
            os.fsync(file.fileno())
        self._folder.sync()

    def remove(self, measured: Measured, suffix: str) -> None:
        """Remove one."""
        self._path(measured, suffix).unlink(missing_ok=True)

    def load(self, is_named: Callable[[NixHash], bool]) -> Iterator[tuple[Measured, str, float]]:
        """Give what an earlier run left, the oldest first: figures, suffix and time; others are removed.

        What was not measured under this start of the machine is removed, unless ``is_named`` by its FileHash.

        """
        for path, _ in list(self._incoming.entries()):
            path.unlink()
        boot = _boot()
        is_same = boot != b"" and self._marker.stat() is not None
        is_same = is_same and self._marker.read_bytes(len(boot)) == boot
        for path, status in sorted(self._folder.entries(), key=lambda one: one[1].st_mtime):
            match = _NAME.fullmatch(path.name)
            file_hash = NixHash(bytes.fromhex(match[1])) if match is not None else None
            is_kept = file_hash is not None and (is_same or is_named(file_hash))
            if match is None or file_hash is None or not is_kept or not S_ISREG(status.st_mode):
                path.unlink()
                continue
            nar_hash = NixHash.parse(f"sha256:{match[2]}")
            measured = Measured(file_hash, status.st_size, nar_hash, int(match[3]))
            yield measured, match[4] or "", status.st_mtime
        write_file(self._marker, [boot], self._incoming)

    def _path(self, measured: Measured, suffix: str) -> RootedPath:
        nar_hash = str(measured.nar_hash).partition(":")[2]
        name = f"{measured.file_hash.digest_hex}-{nar_hash}-{measured.nar_size}.nar{suffix}"
        return self._folder / name


@contextmanager
def format_errors() -> Iterator[None]:
    """Refuse what is malformed."""
    try:
        yield
    except FormatError as error:
        raise UploadRefusedError(str(error)) from None


@contextmanager
def disk_errors() -> Iterator[None]:
    """Refuse what cannot be written."""
    try:
        yield
    except ConnectionError:
        raise  # the client's, whose body is read meanwhile
    except OSError as error:
        _log.error("spool not written", extra={"fields": {"error": str(error)}})
        raise full(error.strerror or "the disk failed") from None
    except DiskError as error:
        _log.error("spool not written", extra={"fields": {"error": str(error)}})
        raise full(str(error)) from None


def full(reason: str) -> UploadRefusedError:
    """Say that there is no space."""
    # Not 507: at 5xx, some versions of Nix hang.
    return UploadRefusedError(
        f"the spool has no space for it: {reason}; try again later", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    )


def _remove(path: RootedPath) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _boot() -> bytes:
    """Name this start of the machine; empty where that is not known."""
    with suppress(OSError):
        return _BOOT.read_bytes().strip()
    return b""

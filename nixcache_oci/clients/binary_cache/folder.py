"""A binary cache in a folder, as ``nix copy --to file://…`` and ``nixcache-oci export`` write it."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

from nixcache_oci.clients.binary_cache.source import CACHE_INFO, MAX_NARINFO_BYTES
from nixcache_oci.errors import FormatError, UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.store_path import HashPart

_SUFFIX: Final = ".narinfo"
_CHUNK_BYTES: Final = 256 * 1024


class FolderCache:
    """Reads one folder.

    Args:
        folder: which it is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self._folder)

    async def close(self) -> None:
        """Do nothing: files are closed when they are read."""

    async def read_info(self) -> bytes:
        """Read its nix-cache-info.

        Raises:
            UpstreamError: there is no such folder, or none in it.
        """
        content = await asyncio.to_thread(self._read, CACHE_INFO)
        if content is None:
            is_there = await asyncio.to_thread(self._folder.is_dir)
            raise UpstreamError(
                f"{self.name}: is no binary cache: there is no {CACHE_INFO} in it"
                if is_there
                else f"{self.name}: there is no such folder"
            )
        return content

    async def list_names(self) -> list[str]:
        """Name the narinfos, sorted.

        Raises:
            UpstreamError: the folder cannot be read.
        """

        def names() -> list[str]:
            return sorted(path.stem for path in self._folder.glob(f"*{_SUFFIX}"))

        try:
            return await asyncio.to_thread(names)
        except OSError as error:
            raise UpstreamError(f"{self.name}: {error.strerror}") from None

    async def read_narinfo(self, hash_part: HashPart) -> bytes | None:
        """Read a narinfo; None where there is none.

        Raises:
            FormatError: it is far too large.
            UpstreamNotFoundError: it cannot be read, is no file, or leads out of the folder.
        """
        return await asyncio.to_thread(self._read, f"{hash_part}{_SUFFIX}")

    @asynccontextmanager
    async def open_nar(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open what lies at a narinfo's URL.

        Raises:
            UpstreamNotFoundError: there is none that can be read, or it lies outside the folder.
            UpstreamError: the disk failed.
        """
        file = await asyncio.to_thread(self._open, url)
        if file is None:
            raise UpstreamNotFoundError(f"{self.name}: there is no {url}")
        try:
            yield self._chunks(file, url)
        finally:
            file.close()

    async def _chunks(self, file: IO[bytes], url: str) -> AsyncGenerator[bytes, None]:
        try:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk
        except OSError as error:
            raise UpstreamError(f"{self.name}: {url}: {error.strerror}") from None

    def _read(self, name: str) -> bytes | None:
        file = self._open(name)
        if file is None:
            return None
        with file:
            content = file.read(MAX_NARINFO_BYTES + 1)
        if len(content) > MAX_NARINFO_BYTES:
            raise FormatError(f"{name} has over {MAX_NARINFO_BYTES} bytes")
        return content

    def _open(self, url: str) -> IO[bytes] | None:
        """Open a regular file below the folder: nothing else may get into a cache, whoever wrote this one."""
        try:
            path = (self._folder / url).resolve()
            if not path.is_relative_to(self._folder.resolve()):
                raise UpstreamNotFoundError(f"{self.name}: {url} leads out of it")
            # A pipe would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UpstreamNotFoundError(f"{self.name}: {url}: {reason}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UpstreamNotFoundError(f"{self.name}: {url} is no file")
        return os.fdopen(descriptor, "rb")

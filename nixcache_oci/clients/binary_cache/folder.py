"""A binary cache in a folder, as ``nix copy --to file://…`` and ``nixcache-oci export`` write it."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

from nixcache_oci.clients.binary_cache.source import CACHE_INFO, MAX_NARINFO_BYTES
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError, UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.store_path import HashPart

_SUFFIX: Final = ".narinfo"
_CHUNK_BYTES: Final = 256 * 1024


class FolderCache:
    """Reads one folder, which a stranger may have written: links below it are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = RootedPath(folder)

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self._folder)

    async def close(self) -> None:
        """Do nothing: each file is closed after reading."""

    async def read_info(self) -> bytes | None:
        """Read its nix-cache-info; None if it has none, UpstreamError if there is no such folder."""
        content = await asyncio.to_thread(self._read, CACHE_INFO)
        if content is None and not await asyncio.to_thread(self._folder.root.is_dir):
            raise UpstreamError(f"{self.name}: there is no such folder")
        return content

    async def list_names(self) -> list[str]:
        """List the hash parts of the narinfos, sorted; UpstreamError if the folder cannot be read."""

        def find() -> list[str]:
            names = self._folder.list_names()
            return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))

        try:
            return await asyncio.to_thread(find)
        except OSError as error:
            raise UpstreamError(f"{self.name}: {error.strerror}") from None

    async def read_narinfo(self, hash_part: HashPart) -> bytes | None:
        """Read a narinfo; None if there is none.

        Raises FormatError if it is far too large. Raises UpstreamNotFoundError if it is unreadable, or leads
        out of the folder.
        """
        return await asyncio.to_thread(self._read, f"{hash_part}{_SUFFIX}")

    @asynccontextmanager
    async def open_nar(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the file at a narinfo's URL; UpstreamError if the disk failed.

        Raises UpstreamNotFoundError if it is missing, unreadable, or outside the folder.
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
        try:
            return os.fdopen(self._folder.joinpath(*url.split("/")).open(), "rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UpstreamNotFoundError(f"{self.name}: {url}: {error.strerror}") from None
        except ValueError:
            raise UpstreamNotFoundError(f"{self.name}: {url} names no file in it") from None

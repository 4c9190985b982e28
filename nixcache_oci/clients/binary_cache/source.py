"""A binary cache to read from: narinfos and NARs as Nix finds them, in a folder or behind a web server.

Strangers wrote what is read: only names are checked here. Source: Nix manual, "Binary Cache Store".
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from nixcache_oci.errors import FormatError, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, check_store_dir

CACHE_INFO: Final = "nix-cache-info"
MAX_NARINFO_BYTES: Final = 1024 * 1024

_USUAL_STORE_DIR: Final = "/nix/store"
_MOST_SHOWN: Final = 200


class BinaryCache(Protocol):
    """One binary cache; close it after use.

    Methods raise UpstreamError for what cannot be read, and UpstreamNotFoundError for a missing NAR.
    """

    @property
    def name(self) -> str:
        """Its address, without credentials."""

    async def read_info(self) -> bytes | None:
        """Read its nix-cache-info; None if it has none."""

    async def list_names(self) -> list[str] | None:
        """List its narinfos by file name, without ``.narinfo``; None if it cannot be listed."""

    async def read_narinfo(self, hash_part: HashPart) -> bytes | None:
        """Read a narinfo; None if there is none."""

    def open_nar(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the file at a narinfo's URL; nothing is verified."""

    async def close(self) -> None:
        """Close all connections."""


async def read_store_dir(cache: BinaryCache) -> str:
    """Read which store folder a binary cache is for; UpstreamError if it is none, or unreadable."""
    content = await cache.read_info()
    if content is None:
        raise UpstreamError(f"{cache.name}: is not a binary cache: it has no {CACHE_INFO}")
    try:
        lines = [line.partition(":") for line in content.decode().splitlines()]
        store_dir = {name: value.strip() for name, _, value in lines}.get("StoreDir", _USUAL_STORE_DIR)
        check_store_dir(store_dir)
    except (UnicodeDecodeError, FormatError) as error:
        raise UpstreamError(f"{cache.name}: {CACHE_INFO}: {error}") from None
    return store_dir


async def find_narinfo(cache: BinaryCache, hash_part: HashPart) -> NarInfo | None:
    """Read a narinfo; None if there is none, UpstreamError if the cache could not be read.

    Raises FormatError if some version of Nix would reject it, or it is about another path.
    """
    content = await cache.read_narinfo(hash_part)
    if content is None:
        return None
    narinfo = NarInfo.parse(content)
    if narinfo.store_path.hash_part != hash_part:
        raise FormatError(f"{hash_part}.narinfo is about {str(narinfo.store_path)[:_MOST_SHOWN]}")
    return narinfo

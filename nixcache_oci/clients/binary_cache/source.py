"""A binary cache to read from: narinfos and NARs as Nix finds them, in a folder or behind a web server.

What is read was written by strangers: nothing here is checked but what names things.
Source: Nix manual, "Binary Cache Store".
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
    """One binary cache; whoever opens it closes it.

    What cannot be read raises an UpstreamError, and a NAR that is not there an UpstreamNotFoundError.
    """

    @property
    def name(self) -> str:
        """Its address, without credentials."""

    async def read_info(self) -> bytes:
        """Read its nix-cache-info; UpstreamError where this is no binary cache."""

    async def list_names(self) -> list[str] | None:
        """Name its narinfos as the files are named, without ``.narinfo``; None where it cannot be listed."""

    async def read_narinfo(self, hash_part: HashPart) -> bytes | None:
        """Read a narinfo; None where there is none."""

    def open_nar(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open what lies at a narinfo's URL; nothing is verified."""

    async def close(self) -> None:
        """Close all connections."""


async def read_store_dir(cache: BinaryCache) -> str:
    """Tell which store a binary cache is for.

    Raises:
        UpstreamError: it is no binary cache, or could not be read.
    """
    content = await cache.read_info()
    try:
        lines = [line.partition(":") for line in content.decode().splitlines()]
        store_dir = {name: value.strip() for name, _, value in lines}.get("StoreDir", _USUAL_STORE_DIR)
        check_store_dir(store_dir)
    except (UnicodeDecodeError, FormatError) as error:
        raise UpstreamError(f"{cache.name}: {CACHE_INFO}: {error}") from None
    return store_dir


async def find_narinfo(cache: BinaryCache, hash_part: HashPart) -> NarInfo | None:
    """Read a narinfo that is about what it is named after; None where there is none.

    Raises:
        FormatError: some Nix would stop at it, or it is about another path.
        UpstreamError: the cache could not be read.
    """
    content = await cache.read_narinfo(hash_part)
    if content is None:
        return None
    narinfo = NarInfo.parse(content)
    if narinfo.store_path.hash_part != hash_part:
        raise FormatError(f"{hash_part}.narinfo is about {str(narinfo.store_path)[:_MOST_SHOWN]}")
    return narinfo

"""One cache that was opened on demand, and the requests that use it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.errors import RegistryError
from nixcache_oci.proxy.opened_cache import OpenedCache

_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})


class Entry:
    """An open cache.

    Attributes:
        name: of its repository.
        folder: of its index.
        users: requests that use it now.
        unused: set while there are none.
    """

    def __init__(self, name: str, cache: OpenedCache, folder: IndexFolder) -> None:
        self.name = name
        self.cache = cache
        self.folder = folder
        self.users = 0
        self.unused = asyncio.Event()
        self.unused.set()

    @property
    def is_denied(self) -> bool:
        """Whether the repository says that it is no cache, or not for everybody."""
        index = self.cache.index
        failure = index.state.failure
        return index.is_absent or (isinstance(failure, RegistryError) and failure.status in _DENIED)

    async def close(self) -> None:
        """Close it now."""
        await self.cache.close()
        await self.cache.repository.close()

    @contextmanager
    def used(self) -> Iterator[OpenedCache]:
        """Keep it open while the block runs."""
        self.users += 1
        self.unused.clear()
        try:
            yield self.cache
        finally:
            self.users -= 1
            self.cache.used_at = time.monotonic()
            if not self.users:
                self.unused.set()

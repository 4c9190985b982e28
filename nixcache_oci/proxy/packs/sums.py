"""Checksums of the blocks of a pack: with them, a part of it can be fetched again, and checked alone.

A client may want more packs by turns than fit into memory. Each is downloaded whole only once then, and what
is wanted of it later comes in parts. Source: design section 3, promises 3 and 6.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import open_resuming
from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

BLOCK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class PackSums:
    """What a pack consisted of when its digest was checked.

    Attributes:
        size: bytes of the pack.
        sums: sha256 of each block of 64 KiB, the last of which may be shorter: 8 KiB for a pack of 16 MiB.
    """

    size: int
    sums: tuple[bytes, ...]

    @classmethod
    def of(cls, content: bytearray) -> Self:
        """Look at a pack: 10 ms for one of 16 MiB."""
        return cls(len(content), tuple(_sums_of(content)))

    async def read(self, repository: Repository, pack: Digest, start: int, end: int) -> bytes:
        """Fetch the bytes from ``start`` to before ``end``, and the rest of their blocks.

        Raises:
            DigestError: they have changed.
            RegistryError: they could not be fetched.
        """
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        offset, behind = first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, self.size)
        content = bytearray()
        async with open_resuming(repository, pack, offset, behind) as blob:
            if blob.size != self.size:
                raise RegistryError(f"blob {pack}: {counted(blob.size, 'byte')} now, {self.size} before")
            async for chunk in blob.chunks:
                content += chunk
        if tuple(_sums_of(content)) != self.sums[first : last + 1]:
            raise DigestError(f"{pack}: bytes {offset} to {behind} have changed")
        return bytes(content[start - offset : end - offset])


def _sums_of(content: bytearray) -> Iterator[bytes]:
    view = memoryview(content)
    for offset in range(0, len(content), BLOCK_BYTES):
        yield hashlib.sha256(view[offset : offset + BLOCK_BYTES]).digest()

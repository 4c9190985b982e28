"""Packs: many small compressed NARs in one blob, so that a closure costs few requests.

Each NAR is compressed alone, without gaps, so each can be read by offset and length.
Source: design section 2, "Segment".
"""

from dataclasses import dataclass, replace
from typing import Final, Self

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, MAX_PACKED_NAR_BYTES, SUFFIXES, NarUrl
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

FIRST_PACK_BYTES: Final = 1024 * 1024
"""Limit of a publish's first pack; see ``PackBuilder.following``."""


@dataclass(frozen=True, slots=True)
class Pack:
    """One finished pack.

    Attributes:
        content: the concatenated NARs, at most 16 MiB.
        digest: of the blob.
        narinfos: of its NARs, each with the URL of its slice.
    """

    content: bytes
    digest: Digest
    narinfos: tuple[NarInfo, ...]


def fits_pack(file_size: int) -> bool:
    """Check whether a NAR of so many compressed bytes goes into a pack, not into a blob of its own."""
    return 0 < file_size <= MAX_PACKED_NAR_BYTES


class PackBuilder:
    """Collects small NARs in closure order, until ``add`` refuses one: then ``finish`` and use ``following``.

    Args:
        limit: in bytes.
        max_blob_bytes: limit of the registry; None for none.
    """

    def __init__(self, limit: int = MAX_PACK_BYTES, max_blob_bytes: int | None = None) -> None:
        self._limit = limit if max_blob_bytes is None else min(limit, max_blob_bytes)
        self._max_blob_bytes = max_blob_bytes
        self._content = bytearray()
        self._parts: list[tuple[NarInfo, int, int]] = []

    def following(self) -> Self:
        """Start the next one, with twice the limit.

        A closure's first packs are small, so that they arrive soon and in parallel; later ones are large, so
        that there are few.
        """
        return type(self)(min(2 * self._limit, MAX_PACK_BYTES), self._max_blob_bytes)

    def add(self, narinfo: NarInfo, compressed: bytes) -> bool:
        """Append one NAR; False if this pack is full.

        Args:
            narinfo: of the NAR; ``finish`` replaces its URL.
            compressed: at most 256 KiB, and the registry's limit.

        Raises:
            FormatError: empty, or over 256 KiB.
        """
        if not fits_pack(len(compressed)):
            size = counted(len(compressed), "byte")
            raise FormatError(f"pack: {narinfo.store_path}: {size} do not belong in a pack")
        if len(self._content) + len(compressed) > self._limit:
            return False
        self._parts.append((narinfo, len(self._content), len(compressed)))
        self._content += compressed
        return True

    def finish(self) -> Pack:
        """Build the pack, and point the narinfos at their slices."""
        content = bytes(self._content)
        digest = Digest.of(content)
        return Pack(
            content,
            digest,
            tuple(
                replace(narinfo, url=str(NarUrl(digest, offset, length, SUFFIXES[narinfo.compression])))
                for narinfo, offset, length in self._parts
            ),
        )

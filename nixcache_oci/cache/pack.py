"""Packs: many small compressed NARs in one blob, so that a closure costs few requests.

Each NAR is compressed alone and nothing lies between them, so any can be cut out by offset and length.
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
"""Of the first pack of a publish; see ``PackBuilder.following``."""


@dataclass(frozen=True, slots=True)
class Pack:
    """One finished pack.

    Attributes:
        content: the NARs, one after another, at most 16 MiB.
        digest: the name of the blob.
        narinfos: of what lies in it, each with the URL of its slice.
    """

    content: bytes
    digest: Digest
    narinfos: tuple[NarInfo, ...]


def fits_pack(file_size: int) -> bool:
    """Tell whether a NAR of so many compressed bytes goes into a pack; otherwise it is a blob of its own."""
    return 0 < file_size <= MAX_PACKED_NAR_BYTES


class PackBuilder:
    """Collects small NARs, in the order given: the caller adds them in closure order.

    ``add`` refuses what no longer fits; the caller then takes ``finish()`` and starts anew.

    Args:
        limit: bytes that it takes at most.
        max_blob_bytes: what the registry takes as one blob; None for any size. No pack is larger.
    """

    def __init__(self, limit: int = MAX_PACK_BYTES, max_blob_bytes: int | None = None) -> None:
        self._limit = limit if max_blob_bytes is None else min(limit, max_blob_bytes)
        self._max_blob_bytes = max_blob_bytes
        self._content = bytearray()
        self._parts: list[tuple[NarInfo, int, int]] = []

    def following(self) -> Self:
        """Start the next one, for twice as much.

        The first packs of a closure are small, so that several come at once over connections of their own,
        and its first NARs soon; the later ones are large, so that there are few, and they have more time.
        """
        return type(self)(min(2 * self._limit, MAX_PACK_BYTES), self._max_blob_bytes)

    def add(self, narinfo: NarInfo, compressed: bytes) -> bool:
        """Append one NAR; False where this pack has no room for it.

        Args:
            narinfo: of the NAR; its URL is replaced when the pack is finished.
            compressed: at most 256 KiB, and what the registry takes as one blob.

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
        """Name the pack by its content and point the narinfos at their slices; none, where none was added."""
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

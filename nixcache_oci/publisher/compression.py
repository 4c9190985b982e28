"""How NARs are compressed: the kinds, their levels, and what does it, piece by piece."""

import lzma
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import zstandard

from nixcache_oci.errors import UsageError

Compression = Literal["zstd", "xz", "none"]

COMPRESSIONS: Final[dict[Compression, tuple[range, int]]] = {
    "zstd": (range(1, 20), 3),
    "xz": (range(10), 6),
    "none": (range(1), 0),
}
"""The levels that each takes, and the usual one."""

_MOST_THREADS: Final = 4  # each costs about 10 MiB at the usual level, and 100 MiB at the highest
_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class NarEncoding:
    """How NARs are compressed.

    Attributes:
        compression: as narinfos call it.
        level: of the compression; None for the usual one.
        max_blob_bytes: what the registry takes at most as one blob; None for any size.

    Raises:
        UsageError: there is no such level.
    """

    compression: Compression = "zstd"
    level: int | None = None
    max_blob_bytes: int | None = None

    def __post_init__(self) -> None:
        allowed, _ = COMPRESSIONS[self.compression]
        if self.level is not None and self.level not in allowed:
            raise UsageError(
                f"--level {self.level}: {self.compression} takes {allowed[0]} to {allowed[-1]}"
                if len(allowed) > 1
                else f"--level {self.level}: without compression there are no levels"
            )

    @property
    def used_level(self) -> int:
        """The level that is used."""
        return COMPRESSIONS[self.compression][1] if self.level is None else self.level


class Compressor(Protocol):
    """Takes bytes, and gives those of the compressed stream as they come."""

    def compress(self, data: bytes, /) -> Iterable[bytes]:
        """Take some bytes."""

    def finish(self) -> Iterable[bytes]:
        """Take the end."""


class _Xz:
    def __init__(self, level: int) -> None:
        self._compressor = lzma.LZMACompressor(preset=level)

    def compress(self, data: bytes, /) -> Iterable[bytes]:
        return (self._compressor.compress(data),)

    def finish(self) -> Iterable[bytes]:
        return (self._compressor.flush(),)


class _Uncompressed:
    def compress(self, data: bytes, /) -> Iterable[bytes]:
        return (data,)

    def finish(self) -> Iterable[bytes]:
        return ()


def make_compressor(encoding: NarEncoding, *, is_large: bool) -> Compressor:
    """Begin one stream.

    Args:
        encoding: how to compress.
        is_large: several cores may work on it.
    """
    match encoding.compression:
        case "zstd":
            # Many small ones are compressed side by side already. What several threads write differs from
            # what one writes, but it does not depend on how many they are: the next run, on whatever
            # machine, finds the same blobs.
            threads = min(os.cpu_count() or 1, _MOST_THREADS) if is_large else 0
            compressor = zstandard.ZstdCompressor(level=encoding.used_level, threads=threads)
            # In pieces, for the end of a large one can take seconds, and be given up meanwhile.
            return compressor.chunker(chunk_size=_PIECE_BYTES)
        case "xz":
            return _Xz(encoding.used_level)
        case "none":
            return _Uncompressed()

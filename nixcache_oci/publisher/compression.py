"""Compression of NARs: kinds, levels, and streaming compressors."""

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
"""Valid levels, and the default."""

_MOST_THREADS: Final = 4  # each takes about 10 MiB at the default level, and 100 MiB at the highest
_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class NarEncoding:
    """How NARs are compressed.

    Attributes:
        compression: as in narinfos.
        level: None for the default.
        max_blob_bytes: limit of the registry; None for none.

    Raises:
        UsageError: an invalid level.
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
        """The level, or the default."""
        return COMPRESSIONS[self.compression][1] if self.level is None else self.level


class Compressor(Protocol):
    """A streaming compressor."""

    def compress(self, data: bytes, /) -> Iterable[bytes]:
        """Add bytes; returns compressed ones as they are ready."""

    def finish(self) -> Iterable[bytes]:
        """End the stream; returns the rest."""


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
    """Start one stream; a large one may use several cores."""
    match encoding.compression:
        case "zstd":
            # Small NARs are compressed concurrently already. Multi-threaded output differs from that of one
            # thread, but not by the number of threads: all machines produce the same blobs.
            threads = min(os.cpu_count() or 1, _MOST_THREADS) if is_large else 0
            compressor = zstandard.ZstdCompressor(level=encoding.used_level, threads=threads)
            # In pieces: the end of a large stream can take seconds, and may be cancelled meanwhile.
            return compressor.chunker(chunk_size=_PIECE_BYTES)
        case "xz":
            return _Xz(encoding.used_level)
        case "none":
            return _Uncompressed()

"""Checking a compressed NAR against its narinfo, piece by piece, in bounded memory.

A small blob can inflate to anything: nothing over NarSize is examined or held.
"""

import bz2
import hashlib
import lzma
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Final, cast

import zstandard

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_reader import parse
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.wording import counted

_MAX_WINDOW_BYTES: Final = 128 * 1024 * 1024
_STEP_BYTES: Final = 256 * 1024

Take = Callable[[bytes], object]
"""Receives the next piece of the NAR."""

NewDecompressor = Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]


class NarChecker:
    """Checks one compressed NAR against its narinfo, as its bytes arrive."""

    def __init__(self, narinfo: NarInfo) -> None:
        self._narinfo = narinfo
        self._hasher = hashlib.sha256()
        self._size = 0
        self._problem: str | None = None
        self._inflater = _inflater(narinfo.compression, self._take)

    def write(self, piece: bytes) -> None:
        """Check the next piece."""
        if self._inflater is not None:
            self._try(partial(self._inflater[0], piece))

    def finish(self) -> str | None:
        """Return what is wrong; None if nothing is, or if the compression cannot be unpacked here."""
        if self._inflater is not None:
            self._try(self._inflater[1])
        if self._problem is not None or self._inflater is None:
            return self._problem
        nar_hash = NixHash(self._hasher.digest())
        if (self._size, nar_hash) != (self._narinfo.nar_size, self._narinfo.nar_hash):
            return f"its NAR does not match NarHash ({counted(self._size, 'byte')}, {nar_hash})"
        return None

    def _try(self, step: Callable[[], object]) -> None:
        if self._problem is not None:
            return
        try:
            step()
        except FormatError as error:
            self._problem = str(error)
        except (zstandard.ZstdError, lzma.LZMAError, EOFError, OSError) as error:
            self._problem = f"it cannot be decompressed: {error}"

    def _take(self, nar: bytes) -> None:
        self._size += len(nar)
        if self._size > self._narinfo.nar_size:
            size = counted(self._narinfo.nar_size, "byte")
            raise FormatError(f"its NAR does not match NarHash (over {size}, its NarSize)")
        self._hasher.update(nar)


def can_unpack(compression: str) -> bool:
    """Check whether NARs of this compression can be unpacked here, and so held to their NarHash."""
    return compression in {"zstd", "none", *_STREAMS}


def check_nar(narinfo: NarInfo, file: IO[bytes], keep_going: Callable[[], object]) -> None:
    """Check a NAR of a known compression against its narinfo, and for the form that Nix writes; blocks.

    ``keep_going`` is called for each piece; what it raises ends the check. Raises FormatError if the NAR
    cannot be unpacked, is another one, or is not valid.
    """
    nar_hash, size = measure_nar(narinfo.compression, file, lambda: narinfo.nar_size, keep_going)
    if (size, nar_hash) != (narinfo.nar_size, narinfo.nar_hash):
        raise FormatError(f"its NAR does not match NarHash ({counted(size, 'byte')}, {nar_hash})")


def measure_nar(
    compression: str, file: IO[bytes], most_bytes: Callable[[], int], keep_going: Callable[[], object]
) -> tuple[NixHash, int]:
    """Unpack a NAR of a known compression, and return its NarHash and NarSize; blocks.

    ``keep_going`` and ``most_bytes``, the limit of NarSize by then, are called for each piece. Raises
    FormatError if the NAR cannot be unpacked, is too large, or not in the form that Nix writes.
    """
    hasher, size = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        for piece in _unpack(compression, file):
            keep_going()
            size += len(piece)
            if size > (most := most_bytes()):
                raise FormatError(f"its NAR is over {counted(most, 'byte')}, its NarSize")
            hasher.update(piece)
            yield piece

    try:
        for _ in parse(pieces()):
            pass  # reading it is the check
    except (zstandard.ZstdError, lzma.LZMAError, EOFError, OSError) as error:
        raise FormatError(f"it cannot be decompressed: {error}") from None
    return NixHash(hasher.digest()), size


class _Target:
    """The file that the zstd library writes to."""

    def __init__(self, take: Take) -> None:
        self._take = take

    def write(self, nar: bytes) -> int:
        self._take(nar)
        return len(nar)


class _Streams:
    """Decompresses xz or bzip2; streams may be concatenated."""

    def __init__(self, new: NewDecompressor) -> None:
        self._new = new
        self._decompressor = new()
        self._is_between = True

    def inflate(self, piece: bytes) -> Iterator[bytes]:
        while True:
            if self._is_between:
                piece = piece.lstrip(b"\0")  # padding, which the xz format allows there
                if not piece:
                    return
                self._is_between = False
            yield self._decompressor.decompress(piece, _STEP_BYTES)
            if self._decompressor.eof:
                piece = self._decompressor.unused_data
                self._decompressor, self._is_between = self._new(), True
            elif self._decompressor.needs_input:
                return
            else:
                piece = b""

    def finish(self) -> None:
        """Check that the last stream is complete; EOFError if it is truncated, even if the NAR is whole."""
        if not self._is_between:
            raise EOFError("it ends in the middle of a stream")


_STREAMS: Final[dict[str, NewDecompressor]] = {
    "xz": partial(lzma.LZMADecompressor, memlimit=_MAX_WINDOW_BYTES),
    "bzip2": bz2.BZ2Decompressor,
}


def _inflater(compression: str, take: Take) -> tuple[Take, Callable[[], None]] | None:
    match compression:
        case "zstd":
            # The library only calls write().
            target = cast("IO[bytes]", _Target(take))
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
            return decompressor.stream_writer(target, closefd=False).write, _nothing
        case "xz" | "bzip2":
            streams = _Streams(_STREAMS[compression])

            def write(piece: bytes) -> None:
                for nar in streams.inflate(piece):
                    take(nar)

            return write, streams.finish
        case "none":
            return take, _nothing
    return None


def _nothing() -> None:
    """Finish a format that needs no finishing."""


def _unpack(compression: str, file: IO[bytes]) -> Iterator[bytes]:
    if compression == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        file = cast("IO[bytes]", decompressor.stream_reader(file, read_across_frames=True, closefd=False))
    streams = _Streams(_STREAMS[compression]) if compression in _STREAMS else None
    while piece := file.read(_STEP_BYTES):
        if streams is None:
            yield piece
        else:
            yield from streams.inflate(piece)
    if streams is not None:
        streams.finish()

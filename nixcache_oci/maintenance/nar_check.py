"""Holding the bytes of a compressed NAR to its narinfo, piece by piece, in bounded memory.

A small blob can inflate to anything: what is over NarSize is never looked at, and never held.
"""

import hashlib
import lzma
from collections.abc import Callable
from typing import IO, Final, cast

import zstandard

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo

_MAX_WINDOW_BYTES: Final = 128 * 1024 * 1024
_STEP_BYTES: Final = 256 * 1024

Take = Callable[[bytes], object]
"""Is given the next piece of the NAR."""


class NarChecker:
    """Takes the bytes of one compressed NAR.

    Args:
        narinfo: says what they have to be.
    """

    def __init__(self, narinfo: NarInfo) -> None:
        self._narinfo = narinfo
        self._hasher = hashlib.sha256()
        self._size = 0
        self._trouble: str | None = None
        self._inflate = _inflater(narinfo.compression, self._take)

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._trouble is not None or self._inflate is None:
            return
        try:
            self._inflate(piece)
        except FormatError as error:
            self._trouble = str(error)
        except (zstandard.ZstdError, lzma.LZMAError, EOFError) as error:
            self._trouble = f"it cannot be decompressed: {error}"

    def finish(self) -> str | None:
        """Tell what is wrong with the whole; None where nothing is, or where nobody here can unpack it."""
        if self._trouble is not None or self._inflate is None:
            return self._trouble
        nar_hash = NixHash(self._hasher.digest())
        if (self._size, nar_hash) != (self._narinfo.nar_size, self._narinfo.nar_hash):
            return f"its NAR is not what NarHash says ({self._size} bytes, {nar_hash})"
        return None

    def _take(self, nar: bytes) -> None:
        self._size += len(nar)
        if self._size > self._narinfo.nar_size:
            raise FormatError(
                f"its NAR is not what NarHash says (over {self._narinfo.nar_size} bytes, its NarSize)"
            )
        self._hasher.update(nar)


class _Target:
    """What the zstd library writes into, a buffer of its own at a time."""

    def __init__(self, take: Take) -> None:
        self._take = take

    def write(self, nar: bytes) -> int:
        self._take(nar)
        return len(nar)


class _Xz:
    """Inflates xz; streams may follow each other, as ``xz`` itself writes them with several files."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._decompressor = _new_xz()

    def write(self, piece: bytes) -> None:
        while True:
            self._take(self._decompressor.decompress(piece, _STEP_BYTES))
            if self._decompressor.eof:
                piece = self._decompressor.unused_data
                self._decompressor = _new_xz()
                if not piece:
                    return
            elif self._decompressor.needs_input:
                return
            else:
                piece = b""


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_MAX_WINDOW_BYTES)


def _inflater(compression: str, take: Take) -> Take | None:
    match compression:
        case "zstd":
            # All that the library asks of its target is write().
            target = cast("IO[bytes]", _Target(take))
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
            return decompressor.stream_writer(target, closefd=False).write
        case "xz":
            return _Xz(take).write
        case "none":
            return take
    return None

"""Undoes content codings, which some servers send whether asked or not.

Nix can store narinfos and other files compressed (``narinfo-compression``), and accepts any of these codings
from any cache. Output comes in bounded pieces, so that a stranger cannot exhaust memory.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import brotli
import zstandard

PIECE_BYTES: Final = 64 * 1024
"""About the most that one step yields; a zstd stream may yield 8 MiB at once."""

_MAX_WINDOW_BYTES: Final = 128 * 1024 * 1024  # the zstd program's default
_LZMA_MEMORY_BYTES: Final = 128 * 1024 * 1024  # xz -9 needs 65 MiB
_ZSTD_SLICE_BYTES: Final = 256  # a block of four bytes may stand for 128 KiB


class CodingError(ValueError):
    """A body is not in the coding that its head names, or ends early."""


class _Inflater(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes inflate to, in pieces."""

    @property
    def has_ended(self) -> bool:
        """Whether the end of the stream was seen."""


class Decoder:
    """Undoes a coding, as Content-Encoding names it; CodingError if it is unknown, also to Nix."""

    def __init__(self, coding: str) -> None:
        make = _INFLATERS.get(coding.strip().lower())
        if make is None:
            raise CodingError(f"Content-Encoding {coding[:40]!r}")
        self._inflater = make()
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes inflate to, in pieces; CodingError if they are not in this coding.

        Bytes after the stream's end are dropped.
        """
        self._has_begun = self._has_begun or bool(data)
        try:
            yield from self._inflater.feed(data)
        except (zlib.error, lzma.LZMAError, brotli.error, zstandard.ZstdError, OSError, EOFError) as error:
            raise CodingError(f"Content-Encoding: {error}") from None

    def end(self) -> None:
        """Check that the body was complete; an empty body is, in any coding; CodingError if it ends early."""
        if self._has_begun and not self._inflater.has_ended:
            raise CodingError("Content-Encoding: the body ends early")


def is_coded(coding: str) -> bool:
    """Tell whether a Content-Encoding names a coding that changes the body."""
    return coding.strip().lower() not in {"", "identity", "none"}


class _Zlib:
    """deflate, or gzip, which may have several members."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inflater = zlib.decompressobj(wbits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater.eof:
                if self._wbits != _GZIP:
                    return
                self._inflater = zlib.decompressobj(self._wbits)
            piece = self._inflater.decompress(data, PIECE_BYTES)
            data = self._inflater.unconsumed_tail or self._inflater.unused_data
            if piece:
                yield piece

    @property
    def has_ended(self) -> bool:
        return self._inflater.eof


class _Stream:
    """xz, lzma and bzip2, which share an interface in Python."""

    def __init__(self, inflater: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> None:
        self._inflater = inflater

    def feed(self, data: bytes) -> Iterator[bytes]:
        while not self._inflater.eof:
            piece = self._inflater.decompress(data, PIECE_BYTES)
            data = b""
            if piece:
                yield piece
            elif self._inflater.needs_input:
                return

    @property
    def has_ended(self) -> bool:
        return self._inflater.eof


class _Brotli:
    def __init__(self) -> None:
        self._inflater = brotli.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        while not self._inflater.is_finished():
            piece: bytes = self._inflater.process(data, output_buffer_limit=PIECE_BYTES)
            data = b""
            if piece:
                yield piece
            elif self._inflater.can_accept_more_data():
                return

    @property
    def has_ended(self) -> bool:
        return bool(self._inflater.is_finished())


class _Zstd:
    """Several frames are one stream, as for the zstd program."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._inflater = self._decompressor.decompressobj()

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE_BYTES):
            rest = data[start : start + _ZSTD_SLICE_BYTES]
            while rest:
                if self._inflater.eof:
                    self._inflater = self._decompressor.decompressobj()
                piece = self._inflater.decompress(rest)
                rest = self._inflater.unused_data
                if piece:
                    yield piece

    @property
    def has_ended(self) -> bool:
        return bool(self._inflater.eof)


_GZIP: Final = 16 + zlib.MAX_WBITS
_INFLATERS: Final[Mapping[str, Callable[[], _Inflater]]] = MappingProxyType(
    {
        "gzip": lambda: _Zlib(_GZIP),
        "x-gzip": lambda: _Zlib(_GZIP),
        "deflate": lambda: _Zlib(zlib.MAX_WBITS),
        "br": _Brotli,
        "zstd": _Zstd,
        "xz": lambda: _Stream(lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)),
        "lzma": lambda: _Stream(lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)),
        "bzip2": lambda: _Stream(bz2.BZ2Decompressor()),
    }
)

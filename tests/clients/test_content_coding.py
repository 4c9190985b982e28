"""Content codings: what goes in comes out, in bounded pieces, and nothing else does."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from nixcache_oci.clients.http.content_coding import CodingError, Decoder, is_coded

CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip in two members": ("x-gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "deflate": ("deflate", zlib.compress),
    "br": ("br", brotli.compress),
    "zstd": ("ZSTD", zstandard.ZstdCompressor().compress),
    "zstd in two frames": ("zstd", lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])),
    "xz": ("xz", lzma.compress),
    "lzma": ("lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE)),
    "bzip2": (" bzip2 ", bz2.compress),
}


def decode(coding: str, data: bytes, step: int = 100_000) -> bytes:
    decoder = Decoder(coding)
    pieces = [
        piece for start in range(0, len(data), step) for piece in decoder.feed(data[start : start + step])
    ]
    decoder.end()
    return b"".join(pieces)


TEXT = b"".join(b"%d," % number for number in range(5_000))


@pytest.mark.parametrize("kind", CODINGS)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_what_was_compressed_comes_out(kind: str, step: int) -> None:
    """However it is cut on the way."""
    coding, compress = CODINGS[kind]
    assert decode(coding, compress(TEXT), step) == TEXT


@pytest.mark.parametrize("kind", CODINGS)
def test_a_bomb_goes_off_in_small_pieces(kind: str) -> None:
    """Whoever reads decides when it is enough; 64 MiB never stand in memory at once."""
    coding, compress = CODINGS[kind]
    pieces = Decoder(coding).feed(compress(bytes(64 * 1024 * 1024)))
    total = 0
    while total < 32 * 1024 * 1024:
        piece = next(pieces)
        assert len(piece) <= 8 * 1024 * 1024
        total += len(piece)


@pytest.mark.parametrize("kind", CODINGS)
def test_what_ends_early_or_is_something_else_is_an_error(kind: str) -> None:
    """Half a narinfo may look like a whole one."""
    coding, compress = CODINGS[kind]
    with pytest.raises(CodingError):
        decode(coding, compress(TEXT)[:-9])
    with pytest.raises(CodingError):
        decode(coding, b"\xff no such thing, and longer than any head of it")
    Decoder(coding).end()  # an empty body, as of a 404


def test_codings_that_nix_does_not_know_are_refused() -> None:
    """And what says that nothing was done needs no decoder."""
    with pytest.raises(CodingError, match="compress"):
        Decoder("compress")
    assert [is_coded(coding) for coding in ("", "identity", " Identity", "br")] == [False, False, False, True]

"""Holding a compressed NAR to its narinfo: what is right passes, and a bomb is never inflated."""

import bz2
import hashlib
import io
import lzma
import tracemalloc
from dataclasses import replace

import pytest
import zstandard

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File, dump_tree
from nixcache_oci.nix.nar_check import NarChecker, check_nar
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.objects import store_object

NAR = bytes(range(256)) * 2000
MIB = 1024 * 1024
BOMB_BYTES = 256 * MIB


def narinfo(nar: bytes, compression: str) -> NarInfo:
    return replace(
        store_object("x").narinfo,
        compression=compression,
        nar_hash=NixHash(hashlib.sha256(nar).digest()),
        nar_size=len(nar),
    )


def compress(nar: bytes, compression: str) -> bytes:
    match compression:
        case "zstd":
            return zstandard.ZstdCompressor(level=19).compress(nar)
        case "xz":
            return lzma.compress(nar, preset=1)
        case "bzip2":
            return bz2.compress(nar)
    return nar


def check(content: bytes, told: NarInfo, step: int) -> str | None:
    checker = NarChecker(told)
    for start in range(0, len(content), step):
        checker.write(content[start : start + step])
    return checker.finish()


@pytest.mark.parametrize("compression", ["zstd", "xz", "bzip2", "none"])
@pytest.mark.parametrize("step", [7, 1000, 10 * MIB])
def test_what_is_right_passes(compression: str, step: int) -> None:
    """However it comes in pieces, and where streams follow each other, as parallel compressors write them."""
    told = narinfo(NAR, compression)
    content = compress(NAR, compression)
    assert check(content[:step] + content[step:], told, max(step, len(content) // 200)) is None
    halves = compress(NAR[:5000], compression) + compress(NAR[5000:], compression)
    assert check(halves, told, max(step, len(halves) // 200)) is None


@pytest.mark.parametrize("compression", ["zstd", "xz", "bzip2", "none"])
def test_what_is_wrong_does_not(compression: str) -> None:
    """Cut, flipped, or longer than NarSize says."""
    told = narinfo(NAR, compression)
    content = compress(NAR, compression)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    assert check(bytes(flipped), told, MIB) is not None
    assert check(content[: len(content) // 2], told, MIB) is not None
    longer = check(compress(NAR + b"x", compression), told, MIB)
    assert longer is not None
    assert "its NarSize" in longer


@pytest.mark.parametrize("compression", ["zstd", "xz"])
def test_a_bomb_is_not_inflated(compression: str) -> None:
    """A small blob that inflates to gigabytes costs no memory, and no time behind NarSize."""
    bomb = compress(bytes(BOMB_BYTES), compression)
    assert len(bomb) < MIB
    told = narinfo(NAR, compression)
    tracemalloc.start()
    try:
        found = check(bomb, told, MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    assert "NarSize" in found
    assert peak < 16 * MIB


def test_what_is_none_of_a_stream_passes() -> None:
    """The xz format allows zeros behind it; what nobody here can unpack was hashed, and that is all."""
    nar = b"".join(dump_tree(File(b"x" * 5000)))
    assert check(compress(nar, "xz") + bytes(4), narinfo(nar, "xz"), 1000) is None
    assert check(b"whatever", narinfo(NAR, "br"), 3) is None


@pytest.mark.parametrize("compression", ["xz", "bzip2"])
@pytest.mark.parametrize("lost", [1, 8])
def test_a_stream_that_is_cut_behind_the_last_byte_of_the_nar(compression: str, lost: int) -> None:
    """Nix refuses it, so that it is wrong here, too; both ways of checking say so."""
    nar = b"".join(dump_tree(File(b"x" * 5000)))
    told = narinfo(nar, compression)
    content = compress(nar, compression)
    assert check(content, told, MIB) is None
    check_nar(told, io.BytesIO(content), lambda: None)
    for broken in (content[:-lost], content + content[:3]):
        assert check(broken, told, MIB) is not None
        with pytest.raises(FormatError, match="middle of a stream"):
            check_nar(told, io.BytesIO(broken), lambda: None)

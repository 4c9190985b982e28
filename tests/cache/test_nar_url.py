"""NAR URLs: where the bytes of a NAR lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.nar_url import (
    MAX_PACK_BYTES,
    MAX_PACKED_NAR_BYTES,
    NarUrl,
    hashed_slice_of,
    sized_blob_of,
)
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest

BLOB = Digest.of(b"blob")

suffixes = st.sampled_from(["", ".zst", ".xz"])
blobs = st.binary(max_size=4).map(Digest.of)
slices = st.integers(1, MAX_PACKED_NAR_BYTES).flatmap(
    lambda length: st.tuples(st.integers(0, MAX_PACK_BYTES - length), st.just(length))
)


@given(blobs, st.none() | slices, suffixes)
def test_what_is_written_is_read_again(blob: Digest, place: tuple[int, int] | None, suffix: str) -> None:
    """Any proxy can serve a URL that another one handed out."""
    offset, length = place or (None, None)
    url = NarUrl(blob, offset, length, suffix)
    assert NarUrl.parse(str(url)) == url
    for file_hash in ("", "FileHash: sha256:x\n"):
        lines = f"StorePath: x\nURL: {url}\nCompression: x\n{file_hash}FileSize: 12\nRest: y\n".encode()
        assert sized_blob_of(lines) == (None if place else (blob, 12))
        assert sized_blob_of(lines.replace(b"FileSize: 12\n", b"")) is None
        found = (blob, place[0], sum(place), b"sha256:x") if place and file_hash else None
        assert hashed_slice_of(lines) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nar/",
        f"nar/{BLOB.hex}",
        f"nar/{BLOB.hex.upper()}.nar.zst",
        f"nar/{BLOB.hex[1:]}.nar.zst",
        f"/nar/{BLOB.hex}.nar.zst",
        f"nar/{BLOB.hex}.nar.zst/",
        f"nar/{BLOB.hex}.nar.zst\n",
        f"nar/../nar/{BLOB.hex}.nar.zst",
        f"nar/{BLOB.hex}/00-10.nar.zst",
        f"nar/{BLOB.hex}/0-010.nar.zst",
        f"nar/{BLOB.hex}/0-0.nar.zst",
        f"nar/{BLOB.hex}/-1-10.nar.zst",
        f"nar/{BLOB.hex}/+1-10.nar.zst",
        f"nar/{BLOB.hex}/1-1٣.nar.zst",
        f"nar/{BLOB.hex}/1_0-10.nar.zst",
        f"nar/{BLOB.hex}/0-{MAX_PACKED_NAR_BYTES + 1}.nar.zst",
        f"nar/{BLOB.hex}/{MAX_PACK_BYTES}-1.nar.zst",
        f"nar/{BLOB.hex}/99999999999999999999-1.nar.zst",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """Offsets are canonical decimals inside what a pack can hold: one place has one name."""
    with pytest.raises(FormatError):
        NarUrl.parse(text)

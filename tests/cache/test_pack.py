"""Packs: small NARs in one blob, each to be cut out alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, MAX_PACKED_NAR_BYTES, NarUrl
from nixcache_oci.cache.pack import FIRST_PACK_BYTES, PackBuilder, fits_pack
from nixcache_oci.errors import FormatError
from tests.support.objects import store_object


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_every_slice_is_what_was_added(contents: list[bytes]) -> None:
    """Offset and length of the URL cut exactly that NAR out, and nothing lies between."""
    builder = PackBuilder()
    for number, content in enumerate(contents):
        assert builder.add(store_object(str(number)).narinfo, content)
    pack = builder.finish()
    assert pack.content == b"".join(contents)
    for narinfo, content in zip(pack.narinfos, contents, strict=True):
        url = NarUrl.parse(narinfo.url)
        assert url.blob == pack.digest
        assert url.offset is not None
        assert url.length is not None
        assert pack.content[url.offset : url.offset + url.length] == content


def test_a_pack_of_nothing_has_no_narinfos() -> None:
    """The caller sees that there is nothing to push."""
    assert PackBuilder().finish().narinfos == ()


def test_the_limits() -> None:
    """256 KiB a NAR, 16 MiB a pack: what no longer fits is refused, and the pack stays as it was."""
    narinfo = store_object("x").narinfo
    builder = PackBuilder()
    for _ in range(MAX_PACK_BYTES // MAX_PACKED_NAR_BYTES):
        assert builder.add(narinfo, bytes(MAX_PACKED_NAR_BYTES))
    assert not builder.add(narinfo, b"x")
    assert len(builder.finish().content) == MAX_PACK_BYTES
    assert not fits_pack(0)
    assert not fits_pack(MAX_PACKED_NAR_BYTES + 1)
    with pytest.raises(FormatError):
        PackBuilder().add(narinfo, bytes(MAX_PACKED_NAR_BYTES + 1))


def test_packs_grow_up_to_the_limit() -> None:
    """However large a closure is, it has few packs, and none over 16 MiB."""
    narinfo, part = store_object("x").narinfo, bytes(MAX_PACKED_NAR_BYTES)
    builder = PackBuilder(FIRST_PACK_BYTES)
    sizes = []
    for _ in range(7):
        while builder.add(narinfo, part):
            pass
        sizes.append(len(builder.finish().content) // FIRST_PACK_BYTES)
        builder = builder.following()
    assert sizes == [1, 2, 4, 8, 16, 16, 16]


def test_packs_keep_to_what_the_registry_takes() -> None:
    """Also those that follow: none grows past the limit that was given."""
    limit = 3 * MAX_PACKED_NAR_BYTES
    narinfo, part = store_object("x").narinfo, bytes(MAX_PACKED_NAR_BYTES)
    builder = PackBuilder(FIRST_PACK_BYTES, limit)
    for _ in range(3):
        while builder.add(narinfo, part):
            pass
        assert len(builder.finish().content) == limit
        builder = builder.following()

"""Splitting what is to be listed into segments."""

from dataclasses import replace
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.segment import MAX_LAYERS, build_manifest
from nixcache_oci.cache.splitting import MAX_NARINFO_BYTES, split
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import CREATED

TABLE = Descriptor(media_type.TABLE, Digest.of(b"table"), 5)
MANY = [store_object(str(number)).narinfo for number in range(40)]


def blob(number: int, notes: str = "") -> Descriptor:
    annotations = {"notes": notes} if notes else {}
    return Descriptor(media_type.PACK, Digest.of(str(number).encode()), number, annotations=annotations)


def by_digest(*blobs: Descriptor) -> dict[Digest, Descriptor]:
    return {one.digest: one for one in blobs}


def lying_in(narinfo: NarInfo, blob: Descriptor) -> NarInfo:
    return replace(narinfo, url=str(NarUrl(blob.digest, 0, 1)))


def size(*narinfos: NarInfo) -> int:
    """What they add to a table."""
    head = len(render_table(Table(TableHeader(CREATED))))
    return len(render_table(Table(TableHeader(CREATED), (), narinfos))) - head


@given(
    st.lists(st.integers(0, 5), max_size=len(MANY)),
    st.integers(1, 4),
    st.integers(size(MANY[0]), size(*MANY)),
)
def test_every_narinfo_is_in_one_segment_with_its_blob(
    places: list[int], max_layers: int, max_bytes: int
) -> None:
    """In order, within the limits, with every blob that is pointed at; and no cut is made too early."""
    narinfos = [lying_in(one, blob(place)) for one, place in zip(MANY, places, strict=False)]
    contents = split(narinfos, by_digest(*map(blob, range(6))), max_layers=max_layers, max_bytes=max_bytes)
    assert [one for content in contents for one in content.narinfos] == narinfos
    for content in contents:
        pointed_at = [NarUrl.parse(one.url).blob for one in content.narinfos]
        assert [one.digest for one in content.layers] == list(dict.fromkeys(pointed_at))
        assert len(content.layers) <= max_layers
        assert len(content.narinfos) == 1 or size(*content.narinfos) <= max_bytes
    for content, following in pairwise(contents):
        further = following.narinfos[0]
        layers = {*content.layers, blob(places[narinfos.index(further)])}
        assert len(layers) > max_layers or size(*content.narinfos, further) > max_bytes


def test_there_is_a_segment_for_the_record_of_nothing() -> None:
    """A publish with nothing new still says so."""
    [content] = split([], {})
    assert (content.narinfos, content.layers) == ((), ())


def test_a_table_that_is_cut_can_be_written() -> None:
    """Bytes count as they are written, and a narinfo may hold any letter."""
    narinfos = [lying_in(replace(one, extra=(("Note", "ü" * 2**18),)), blob(0)) for one in MANY[:6]]
    contents = split(narinfos, by_digest(blob(0)), max_bytes=2**21)
    assert [len(content.narinfos) for content in contents] == [3, 3]
    assert MAX_NARINFO_BYTES < 64 * 2**20


@pytest.mark.parametrize(("max_layers", "max_bytes"), [(0, MAX_NARINFO_BYTES), (9, 1)])
def test_what_is_over_a_limit_by_itself_comes_alone(max_layers: int, max_bytes: int) -> None:
    """It is refused where it is written, by name; splitting comes to an end."""
    narinfos = [lying_in(one, blob(number)) for number, one in enumerate(MANY[:3])]
    contents = split(narinfos, by_digest(*map(blob, range(3))), max_layers=max_layers, max_bytes=max_bytes)
    assert [content.narinfos for content in contents] == [(one,) for one in narinfos]


def test_no_manifest_gets_over_its_limit() -> None:
    """Registries refuse large manifests, and what is refused at the end of a publish was sent for nothing."""
    blobs = [blob(number, "x" * 60_000) for number in range(len(MANY))]
    narinfos = [lying_in(*pair) for pair in zip(MANY, blobs, strict=True)]
    contents = split(narinfos, by_digest(*blobs))
    assert len(contents) == 3
    for content in contents:
        build_manifest(TABLE, content.layers, created=CREATED, paths=2000, source="https://github.com/o/n")


def test_as_many_layers_as_a_manifest_takes() -> None:
    """The table is a layer, too."""
    narinfos = [lying_in(MANY[0], blob(number)) for number in range(MAX_LAYERS)]
    contents = split(narinfos, by_digest(*map(blob, range(MAX_LAYERS))))
    assert [len(content.layers) for content in contents] == [MAX_LAYERS - 1, 1]
    build_manifest(TABLE, contents[0].layers, created=CREATED, paths=1, source=None)


def test_tables_and_manifests_keep_to_what_the_registry_takes() -> None:
    """What goes over the line for a segment is no larger than one blob may be, records aside."""
    narinfos = [lying_in(one, blob(number)) for number, one in enumerate(MANY)]
    limit = size(*narinfos) // 5
    contents = split(narinfos, by_digest(*map(blob, range(len(MANY)))), max_blob_bytes=limit)
    assert [one for content in contents for one in content.narinfos] == narinfos
    assert len(contents) > 5
    for content in contents:
        text = render_table(Table(TableHeader(CREATED), (), content.narinfos))
        assert len(zstandard.ZstdCompressor(level=12).compress(text)) <= limit
        assert sum(len(str(one.to_json())) for one in content.layers) <= limit

"""Segments and their tags."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.segment import MAX_LAYERS, Segment, SegmentTag, build_manifest
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import MAX_WRITTEN_MANIFEST_BYTES, Manifest

TIME = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
TABLE = Descriptor(media_type.TABLE, Digest.of(b"table"), 5)
LAYER = Descriptor(media_type.PACK, Digest.of(b"pack"), 4)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)), st.binary(max_size=3))
def test_a_tag_names_time_and_manifest(time: datetime, content: bytes) -> None:
    """The list of tags alone tells which segments exist."""
    tag = SegmentTag(time.replace(microsecond=0, tzinfo=UTC), Digest.of(content))
    assert SegmentTag.parse(str(tag)) == tag


def test_a_tag_is_read_in_either_case() -> None:
    """Older versions wrote upper case, and some registries fold it; it is asked for as it is listed."""
    lower, upper = (f"segment-{time}-{'a' * 64}" for time in ("20261121t031500z", "20261121T031500Z"))
    tags = [SegmentTag.parse(lower), SegmentTag.parse(upper)]
    assert tags[0] == tags[1] == SegmentTag(TIME, Digest("a" * 64))
    assert len(set(tags)) == 1
    assert [str(tag) for tag in tags] == [lower] * 2
    assert [tag and tag.listed for tag in tags] == [lower, upper]


@pytest.mark.parametrize(
    "tag",
    [
        "cache-index",
        "latest",
        "segment-",
        f"segment-20261121T031500Z-{'A' * 64}",
        f"segment-20261121T031500Z-{'a' * 63}",
        f"segment-20261399T031500Z-{'a' * 64}",
        f"segment-2026112103:15:00Z-{'a' * 64}",
        f"xsegment-20261121T031500Z-{'a' * 64}",
    ],
)
def test_other_tags_are_none_of_ours(tag: str) -> None:
    """Whatever else somebody tagged in the repository is left alone."""
    assert SegmentTag.parse(tag) is None


def test_what_is_built_is_read() -> None:
    """The manifest alone tells what the index would; and the table comes first."""
    content = build_manifest(TABLE, [LAYER, LAYER], created=TIME, paths=7, source="https://github.com/o/n")
    segment = Segment.from_manifest(content)
    assert (segment.table, segment.created, segment.paths) == (TABLE.digest, TIME, 7)
    assert segment.manifest == Digest.of(content)
    assert segment.condemned is None
    manifest = Manifest.parse(content)
    assert [layer.digest for layer in manifest.layers] == [TABLE.digest, LAYER.digest]
    assert manifest.annotations[media_type.ANNOTATION_SOURCE] == "https://github.com/o/n"
    # A common copier strips artifactType from descriptors, which would change the index's digest.
    assert segment.descriptor.artifact_type is None


def test_a_merged_segment_names_what_it_took_in() -> None:
    """In manifest and descriptor, so that a lost index loses no mark; a mark of gc changes nothing of it."""
    taken_in = tuple(Digest.of(str(each).encode()) for each in range(64))
    content = build_manifest(TABLE, [], created=TIME, paths=7, source=None, merges=taken_in)
    segment = Segment.from_manifest(content)
    assert segment.merges == Segment.from_descriptor(segment.descriptor).merges == taken_in
    assert mark(segment, TIME).merges == taken_in
    assert Segment.from_manifest(build_manifest(TABLE, [], created=TIME, paths=7, source=None)).merges == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 63,
        f"{'a' * 64}  {'b' * 64}",
        f"{'a' * 64} ",
        f"sha256:{'a' * 64}",
        " ".join(["a" * 64] * 65),
    ],
)
def test_a_malformed_list_of_what_was_taken_in_is_none(text: str) -> None:
    """It only saves work: an index is never refused for it."""
    good = Segment.from_manifest(build_manifest(TABLE, [], created=TIME, paths=0, source=None))
    notes = {**good.descriptor.annotations, media_type.ANNOTATION_MERGES: text}
    assert Segment.from_descriptor(replace(good.descriptor, annotations=notes)).merges == ()


def test_too_many_layers_are_refused() -> None:
    """Registries stop somewhere: a larger publish becomes several segments."""
    layers = [Descriptor(media_type.NAR, Digest.of(str(each).encode()), 1) for each in range(MAX_LAYERS)]
    with pytest.raises(FormatError, match="layers"):
        build_manifest(TABLE, layers, created=TIME, paths=1, source=None)


def test_a_manifest_that_is_too_large_is_refused() -> None:
    """Some registry stops at 4 MiB with an error that says nothing."""
    source = "https://github.com/" + "x" * MAX_WRITTEN_MANIFEST_BYTES
    with pytest.raises(FormatError, match="limit"):
        build_manifest(TABLE, [], created=TIME, paths=1, source=source)


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(artifact_type="application/other", config=EMPTY_CONFIG, layers=(TABLE,)),
        Manifest(artifact_type=media_type.SEGMENT, config=EMPTY_CONFIG, layers=()),
        Manifest(artifact_type=media_type.SEGMENT, config=EMPTY_CONFIG, layers=(LAYER,)),
        Manifest(artifact_type=media_type.SEGMENT, config=EMPTY_CONFIG, layers=(TABLE,)),
    ],
)
def test_what_is_no_segment_is_refused(manifest: Manifest) -> None:
    """Under a segment's tag somebody may have pushed anything."""
    with pytest.raises(FormatError):
        Segment.from_manifest(manifest.render())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (media_type.ANNOTATION_TABLE, "sha256:short"),
        (media_type.ANNOTATION_PATHS, "-1"),
        (media_type.ANNOTATION_PATHS, "many"),
        (media_type.ANNOTATION_CREATED, "yesterday"),
        (media_type.ANNOTATION_CONDEMNED, "soon"),
    ],
)
def test_malformed_annotations_are_refused(key: str, value: str) -> None:
    """The reader keeps the index that it has."""
    good = Segment.from_manifest(build_manifest(TABLE, [], created=TIME, paths=0, source=None))
    notes = {**good.descriptor.annotations, key: value}
    with pytest.raises(FormatError):
        Segment.from_descriptor(replace(good.descriptor, annotations=notes))

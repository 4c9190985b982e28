"""The index, and its union with the tags."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.segment import Segment, build_manifest
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex

NOW = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)


def segment(name: str, created: datetime = NOW) -> Segment:
    table = Descriptor(media_type.TABLE, Digest.of(name.encode()), len(name))
    return Segment.from_manifest(build_manifest(table, [], created=created, paths=1, source=None))


def test_what_is_written_is_read_again() -> None:
    """List, watermark and source; and equal indexes are equal bytes."""
    index = CacheIndex((segment("one"), segment("two")), NOW, "https://github.com/o/n")
    read = CacheIndex.parse(index.render())
    assert (read.segments, read.watermark, read.source) == (index.segments, NOW, index.source)
    assert read.render() == index.render()


def test_a_segment_that_is_known_is_not_parsed_again() -> None:
    """An index of 1,500 segments changes by one with each publish; a mark of gc is a change, too."""
    former = CacheIndex((segment("one"), segment("two")), NOW)
    document = json.loads(former.with_segments([segment("three")]).render())
    marked = next(one for one in document["manifests"] if one["digest"] == str(segment("two").manifest))
    marked["annotations"]["dev.nixcache.condemned"] = "2026-11-20T00:00:00Z"
    content = json.dumps(document).encode()
    read = CacheIndex.parse(content, former.segments)
    assert read == CacheIndex.parse(content)
    assert [one for one in read.segments if any(one is known for known in former.segments)] == [
        segment("one")
    ]


def test_what_is_not_known_here_survives_a_rewrite() -> None:
    """A newer version's marks must not be lost because an older one published in between."""
    document = json.loads(CacheIndex((segment("one"),), NOW).render())
    document["annotations"]["dev.nixcache.later"] = "kept"
    document["manifests"][0]["annotations"]["dev.nixcache.condemned"] = "2026-11-20T00:00:00Z"
    document["manifests"][0]["annotations"]["dev.nixcache.later"] = "kept"
    document["later"] = {"kept": True}
    index = CacheIndex.parse(json.dumps(document).encode())
    again = json.loads(index.with_segments([segment("two")]).render())
    assert again["annotations"]["dev.nixcache.later"] == "kept"
    assert again["later"] == {"kept": True}
    assert document["manifests"][0] in again["manifests"]


def test_a_segment_that_is_listed_keeps_its_mark() -> None:
    """The mark is gc's; a publisher that knows the segment from its manifest must not lift it."""
    marked = json.loads(CacheIndex((segment("one"),), NOW).render())
    marked["manifests"][0]["annotations"]["dev.nixcache.condemned"] = "2026-11-20T00:00:00Z"
    index = CacheIndex.parse(json.dumps(marked).encode())
    [kept] = index.with_segments([segment("one")]).segments
    assert kept.condemned is not None


def test_the_union_takes_tags_from_the_watermark_on() -> None:
    """An older tag counts only where the index lists it: gc merged or dropped that segment."""
    old, edge, new = (
        segment("old", NOW - timedelta(seconds=1)),
        segment("edge", NOW),
        segment("new", NOW + timedelta(1)),
    )
    listed = segment("listed", NOW + timedelta(2))
    index = CacheIndex((listed,), NOW)
    tags = [str(one.tag) for one in (new, old, edge, listed)] + ["cache-index", "latest"]
    assert index.unlisted(tags, 9) == ([edge.tag, new.tag], 0)
    # Older versions wrote upper case: the same counts, and a segment that is tagged in both counts once.
    old_tags = [tag.replace("t", "T").replace("z", "Z").replace("segmenT", "segment") for tag in tags]
    assert index.unlisted(old_tags, 9) == index.unlisted(old_tags + tags, 9) == ([edge.tag, new.tag], 0)
    # No index at all: the watermark is the epoch, and every tag counts.
    assert len(CacheIndex().unlisted(tags, 9)[0]) == 4
    assert CacheIndex().watermark == EPOCH


def test_of_many_tags_the_newest_are_read() -> None:
    """Each costs a request. What only looks like a tag of ours takes nobody's place."""
    segments = [segment(str(hours), NOW + timedelta(hours=hours)) for hours in range(5)]
    tags = [str(one.tag) for one in segments] + [f"segment-99999999T999999Z-{'0' * 64}"]
    assert CacheIndex().unlisted(tags, 2) == ([one.tag for one in segments[3:]], 3)


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {media_type.ANNOTATION_FORMAT: "3", media_type.ANNOTATION_WATERMARK: "2026-11-21T03:15:00Z"},
        {media_type.ANNOTATION_FORMAT: "2"},
        {media_type.ANNOTATION_FORMAT: "2", media_type.ANNOTATION_WATERMARK: "never"},
    ],
)
def test_another_index_is_never_an_empty_one(annotations: dict[str, str]) -> None:
    """A writer that took it for empty would lose every segment."""
    with pytest.raises(FormatError):
        CacheIndex.parse(ImageIndex(manifests=(), annotations=annotations).render())


def test_the_limit_holds() -> None:
    """Readers take at most 1 MiB."""
    segments = tuple(segment(str(number)) for number in range(3500))
    with pytest.raises(FormatError, match="limit"):
        CacheIndex(segments, NOW).render()

"""The index: an image index under the tag ``cache-index`` that lists a cache's segments.

Registries have no compare-and-swap on tags, so writers can overwrite each other's index. Hence a cache
consists of the segments that the index lists, and those whose own tag is not older than the watermark.
Source: design section 2, "Index".
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from heapq import nlargest
from typing import Final, Self

from nixcache_oci.cache.segment import Segment, SegmentTag, is_segment_tag
from nixcache_oci.cache.timestamp import EPOCH, format_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.manifest import ImageIndex
from nixcache_oci.wording import counted

INDEX_TAG: Final = "cache-index"
MAX_INDEX_BYTES: Final = 1024 * 1024

_FORMAT: Final = "2"


@dataclass(frozen=True, slots=True)
class CacheIndex:
    """What the tag ``cache-index`` points at.

    Attributes:
        segments: as listed.
        watermark: a segment with an older tag counts only if listed here.
        source: URL of the GitHub repository, or None.
        image_index: as read; unknown annotations and fields are carried over.
    """

    segments: tuple[Segment, ...] = ()
    watermark: datetime = EPOCH
    source: str | None = None
    image_index: ImageIndex = field(default_factory=lambda: ImageIndex(manifests=(), annotations={}))

    @classmethod
    def parse(cls, content: bytes, known: Iterable[Segment] = ()) -> Self:
        """Read the image index; of known segments, those are reused that it lists as they are known.

        Raises:
            FormatError: not an index of format 2; this is never treated as empty.
        """
        former = {id(segment.descriptor): segment for segment in known}
        image_index = ImageIndex.parse(content, (segment.descriptor for segment in former.values()))
        notes = image_index.annotations
        if notes.get(media_type.ANNOTATION_FORMAT) != _FORMAT:
            found = notes.get(media_type.ANNOTATION_FORMAT)
            raise FormatError(
                f"{INDEX_TAG}: format {found[:40]!r} is not known here; a newer nixcache-oci may read it"
                if found is not None
                else f"{INDEX_TAG}: an image index, but not one of a Nix cache"
            )
        try:
            watermark = parse_time(notes[media_type.ANNOTATION_WATERMARK])
        except KeyError:
            raise FormatError(
                f"{INDEX_TAG}: annotation {media_type.ANNOTATION_WATERMARK} is missing"
            ) from None
        segments = tuple(
            former.get(id(descriptor)) or Segment.from_descriptor(descriptor)
            for descriptor in image_index.manifests
        )
        return cls(segments, watermark, notes.get(media_type.ANNOTATION_SOURCE), image_index)

    def render(self) -> bytes:
        """Write the image index.

        Raises:
            FormatError: over 1 MiB.
        """
        annotations = {
            **self.image_index.annotations,
            media_type.ANNOTATION_FORMAT: _FORMAT,
            media_type.ANNOTATION_WATERMARK: format_time(self.watermark),
        }
        if self.source is not None:
            annotations[media_type.ANNOTATION_SOURCE] = self.source
        content = replace(
            self.image_index,
            media_type=media_type.IMAGE_INDEX,
            manifests=tuple(segment.descriptor for segment in self.segments),
            annotations=annotations,
        ).render()
        if len(content) > MAX_INDEX_BYTES:
            raise FormatError(
                f"{INDEX_TAG}: {counted(len(content), 'byte')}, over the limit of {MAX_INDEX_BYTES}; "
                "gc merges segments"
            )
        return content

    def unlisted(self, tags: Iterable[str], most: int) -> tuple[list[SegmentTag], int]:
        """Find segments that no index lists, because another writer overwrote theirs.

        Args:
            tags: all tags of the repository.
            most: limit; the newest are returned.

        Returns:
            Their tags, oldest first, and how many more there are.
        """
        listed = {segment.manifest.hex for segment in self.segments}
        found = {tag.lower(): tag for tag in tags if is_segment_tag(tag, self.watermark, listed)}
        # Compared as text, which starts with the time: there may be 100,000, and parsing times is slow.
        newest = nlargest(most, found)
        parsed = (SegmentTag.parse(found[tag]) for tag in reversed(newest))
        return [tag for tag in parsed if tag is not None], len(found) - len(newest)

    def with_segments(self, more: Iterable[Segment]) -> Self:
        """Add segments; one that is listed already keeps its annotations."""
        by_manifest = {segment.manifest: segment for segment in (*more, *self.segments)}
        return replace(
            self,
            segments=tuple(sorted(by_manifest.values(), key=lambda one: (one.created, one.manifest))),
        )

"""Segments: what one publish added, as an immutable image manifest under a tag of its own.

Source: design section 2, "Segment" and "Index".
"""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Self

from nixcache_oci.cache.timestamp import format_tag_time, format_time, parse_tag_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import clip
from nixcache_oci.oci.manifest import MAX_WRITTEN_MANIFEST_BYTES, Manifest
from nixcache_oci.wording import counted

MAX_LAYERS: Final = 2000
MAX_MERGED: Final = 64
"""Segments that one merge takes in."""

# From the manifest to its descriptor in the index.
_COPIED: Final = (media_type.ANNOTATION_CREATED, media_type.ANNOTATION_PATHS, media_type.ANNOTATION_MERGES)
_DAY = r"[0-9]{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
_MERGES = re.compile(rf"[0-9a-f]{{64}}(?: [0-9a-f]{{64}}){{0,{MAX_MERGED - 1}}}")
_TAG = re.compile(rf"segment-({_DAY}[Tt](?:[01][0-9]|2[0-3])[0-5][0-9][0-5][0-9][Zz])-([0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class SegmentTag:
    """A segment's own tag: the list of tags alone shows which segments exist.

    It is written in lower case, and read in either: tags compare equal in both.

    Attributes:
        created: to the second.
        manifest: digest of the manifest, which can be checked against it.
        listed: as the repository lists it, if it was read from there.
    """

    created: datetime
    manifest: Digest
    listed: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"segment-{format_tag_time(self.created)}-{self.manifest.hex}"

    @classmethod
    def parse(cls, tag: str) -> Self | None:
        """Parse a tag; None if it is not a segment's."""
        match = _TAG.fullmatch(tag)
        if match is None:
            return None
        try:
            return cls(parse_tag_time(match[1]), Digest(match[2]), tag)
        except FormatError:
            return None  # the form of one, but no such time: not ours


def is_segment_tag(tag: str, since: datetime, but: Container[str]) -> bool:
    """Check for a segment's tag by its text alone: there may be 100,000 tags.

    Args:
        tag: to check.
        since: older ones do not count.
        but: hex digests of manifests whose tags do not count.
    """
    match = _TAG.fullmatch(tag)
    return match is not None and match[2] not in but and match[1].lower() >= format_tag_time(since)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as the index lists it: enough to read its table without its manifest.

    Attributes:
        descriptor: as in the index, carried over verbatim by every rewrite.
        table: digest of the table blob.
        created: when it was published.
        paths: number of narinfos.
        condemned: when gc marked it as dead, or None.
        merges: manifests of the segments that it took in: its table has every path and record of theirs.
    """

    descriptor: Descriptor
    table: Digest
    created: datetime
    paths: int
    condemned: datetime | None
    merges: tuple[Digest, ...] = ()

    @property
    def manifest(self) -> Digest:
        """Digest of its manifest."""
        return self.descriptor.digest

    @property
    def tag(self) -> SegmentTag:
        """Its own tag."""
        return SegmentTag(self.created, self.manifest)

    @classmethod
    def from_descriptor(cls, descriptor: Descriptor) -> Self:
        """Read a descriptor of the index.

        Raises:
            FormatError: an annotation is missing or malformed.
        """
        notes = descriptor.annotations
        try:
            return cls(
                descriptor,
                Digest.parse(notes[media_type.ANNOTATION_TABLE]),
                parse_time(notes[media_type.ANNOTATION_CREATED]),
                _parse_count(notes[media_type.ANNOTATION_PATHS]),
                parse_time(notes[media_type.ANNOTATION_CONDEMNED])
                if media_type.ANNOTATION_CONDEMNED in notes
                else None,
                _parse_merges(notes.get(media_type.ANNOTATION_MERGES, "")),
            )
        except KeyError as error:
            raise FormatError(f"segment {descriptor.digest}: annotation {error.args[0]} is missing") from None
        except FormatError as error:
            raise FormatError(f"segment {descriptor.digest}: {error}") from None

    @classmethod
    def from_manifest(cls, content: bytes) -> Self:
        """Read the manifest of a segment that no index lists yet.

        Raises:
            FormatError: not a segment of version 2.
        """
        digest = Digest.of(content)
        if len(content) > MAX_WRITTEN_MANIFEST_BYTES:
            raise FormatError(f"manifest {digest}: {counted(len(content), 'byte')}, too many for a segment")
        manifest = Manifest.parse(content)
        if manifest.artifact_type not in {None, media_type.SEGMENT}:
            raise FormatError(f"manifest {digest}: it is not a segment, but {clip(manifest.artifact_type)}")
        if not manifest.layers or manifest.layers[0].media_type != media_type.TABLE:
            raise FormatError(f"segment {digest}: its first layer is not a table")
        annotations = {
            **{key: manifest.annotations[key] for key in _COPIED if key in manifest.annotations},
            media_type.ANNOTATION_TABLE: str(manifest.layers[0].digest),
        }
        # No artifactType: a common copier strips it, which would change the index's digest.
        return cls.from_descriptor(
            Descriptor(media_type.IMAGE_MANIFEST, digest, len(content), annotations=annotations)
        )


def build_manifest(
    table: Descriptor,
    layers: Iterable[Descriptor],
    *,
    created: datetime,
    paths: int,
    source: str | None,
    merges: Iterable[Digest] = (),
) -> bytes:
    """Write the manifest of one segment.

    Args:
        table: of the table blob.
        layers: every blob that the narinfos point into; duplicates are dropped.
        created: the segment's time, also in its tag.
        paths: number of narinfos.
        source: URL of the GitHub repository that the package belongs to.
        merges: manifests of the segments that it takes in, at most 64.

    Raises:
        FormatError: over 2,000 layers, or over 1 MiB.
    """
    unique = {layer.digest: layer for layer in layers}
    if len(unique) + 1 > MAX_LAYERS:
        raise FormatError(f"segment: {counted(len(unique) + 1, 'layer')}, over the limit of {MAX_LAYERS}")
    annotations = {
        media_type.ANNOTATION_CREATED: format_time(created),
        media_type.ANNOTATION_PATHS: str(paths),
    }
    if source is not None:
        annotations[media_type.ANNOTATION_SOURCE] = source
    if taken_in := " ".join(manifest.hex for manifest in merges):
        annotations[media_type.ANNOTATION_MERGES] = taken_in
    content = Manifest(
        artifact_type=media_type.SEGMENT,
        config=EMPTY_CONFIG,
        layers=(table, *unique.values()),
        annotations=annotations,
    ).render()
    if len(content) > MAX_WRITTEN_MANIFEST_BYTES:
        raise FormatError(
            f"segment: a manifest of {counted(len(content), 'byte')}, "
            f"over the limit of {MAX_WRITTEN_MANIFEST_BYTES}"
        )
    return content


def _parse_merges(text: str) -> tuple[Digest, ...]:
    """Parse what a merged segment names; nothing if it is malformed, for it only saves work."""
    return tuple(map(Digest, text.split(" "))) if _MERGES.fullmatch(text) else ()


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):  # noqa: PLR2004  # a billion paths is enough
        raise FormatError(f"{media_type.ANNOTATION_PATHS}: expected a count, got {text[:40]!r}")
    return int(text)

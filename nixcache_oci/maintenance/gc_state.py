"""What gc knows when it decides: every segment of a repository, with its table, at one moment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest


class Place(Enum):
    """Where a segment was found."""

    INDEX = "the index lists it"
    TAG = "it counts by its tag, and the index does not list it"
    UNLISTED = "its tag is older than the watermark, and the index does not list it"


@dataclass(frozen=True, eq=False)
class StoredSegment:
    """One segment.

    Attributes:
        segment: as the index lists it, marks included; as its manifest tells otherwise.
        place: where it was found.
        layers: of its manifest, the table's blob first; empty where the manifest is gone.
        table: None where a segment that is condemned or unlisted cannot be read.
        table_size: bytes of the table's text.
    """

    segment: Segment
    place: Place
    layers: tuple[Descriptor, ...] = ()
    table: Table | None = None
    table_size: int = 0

    @property
    def manifest(self) -> Digest:
        """What names it."""
        return self.segment.manifest

    @property
    def is_listed(self) -> bool:
        """Whether readers see it."""
        return self.place is not Place.UNLISTED

    @property
    def is_condemned(self) -> bool:
        """Whether a gc marked it."""
        return self.segment.condemned is not None

    @property
    def records(self) -> tuple[Record, ...]:
        """What publishes and pins left in it."""
        return self.table.records if self.table is not None else ()

    @cached_property
    def narinfos(self) -> Mapping[HashPart, NarInfo]:
        """What it lists."""
        listed = self.table.narinfos if self.table is not None else ()
        return {narinfo.store_path.hash_part: narinfo for narinfo in listed}

    @cached_property
    def sizes(self) -> Mapping[HashPart, int]:
        """Compressed bytes of each NAR that it lists."""
        blobs = {layer.digest: layer.size for layer in self.layers}
        urls = {part: NarUrl.parse(narinfo.url) for part, narinfo in self.narinfos.items()}
        return {part: blobs[url.blob] if url.length is None else url.length for part, url in urls.items()}

    @property
    def blobs(self) -> Iterator[Descriptor]:
        """Its manifest and all that this holds."""
        yield self.segment.descriptor
        yield from self.layers


@dataclass(frozen=True, slots=True)
class FormerIndex:
    """A version of ``cache-index`` that no tag points at any more.

    Attributes:
        digest: of the image index.
        created: when the repository took it.
        size: in bytes.
    """

    digest: Digest
    created: datetime
    size: int


@dataclass(frozen=True, eq=False)
class GcState:
    """A repository at gc's start.

    Attributes:
        started: before anything was read: marks' ages are measured from here.
        segments: all that the index lists or a tag names.
        former_indexes: those that the repository can tell of.
    """

    started: datetime
    segments: tuple[StoredSegment, ...] = ()
    former_indexes: tuple[FormerIndex, ...] = ()

    @cached_property
    def references(self) -> Mapping[HashPart, frozenset[HashPart]]:
        """What each path refers to, in any of its variants, itself left out."""
        found: dict[HashPart, set[HashPart]] = {}
        for segment in self.segments:
            for part, narinfo in segment.narinfos.items():
                parts = {HashPart.of(reference) for reference in narinfo.references}
                found.setdefault(part, set()).update(parts - {part})
        return {part: frozenset(parts) for part, parts in found.items()}

"""What gc decides on: every segment of a repository, with its table, at one time."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property

from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.maintenance.gc.table_rows import GcTable, PathGraph
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
        segment: as the index lists it, with its mark; otherwise from its manifest.
        place: where it was found.
        layers: of its manifest, the table's blob first; empty if the manifest is gone.
        table: None if a condemned or unlisted segment cannot be read.
    """

    segment: Segment
    place: Place
    layers: tuple[Descriptor, ...] = ()
    table: GcTable | None = None

    @property
    def manifest(self) -> Digest:
        """Digest of its manifest."""
        return self.segment.manifest

    @property
    def is_listed(self) -> bool:
        """Whether readers see it."""
        return self.place is not Place.UNLISTED

    @property
    def is_condemned(self) -> bool:
        """Whether gc has marked it."""
        return self.segment.condemned is not None

    @property
    def records(self) -> tuple[Record, ...]:
        """Its records of publishes and pins."""
        return self.table.records if self.table is not None else ()

    @property
    def paths(self) -> "array[int]":
        """Numbers of its paths, in the order of its rows."""
        return self.table.rows.paths if self.table is not None else array("I")

    @property
    def sizes(self) -> Iterator[tuple[int, int]]:
        """Numbers of its paths, each with its NAR's compressed size in bytes."""
        return zip(self.paths, self.table.rows.sizes if self.table is not None else (), strict=True)

    @property
    def blobs(self) -> Iterator[Descriptor]:
        """Its manifest and layers."""
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
        started: time before anything was read, from which the age of marks is measured.
        segments: all that the index lists or a tag names.
        former_indexes: that the repository can list.
    """

    started: datetime
    segments: tuple[StoredSegment, ...] = ()
    former_indexes: tuple[FormerIndex, ...] = ()

    @cached_property
    def graph(self) -> PathGraph:
        """What each path refers to; for a large cache this takes seconds."""
        return PathGraph(one.table for one in self.segments if one.table is not None)

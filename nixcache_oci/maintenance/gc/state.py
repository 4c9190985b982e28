"""What gc decides on: every segment of a repository, with its table, at one time.

Tables are held in a compact form: about 110 bytes per path, while a parsed narinfo takes 2,000. Paths are
numbers; narinfos are parsed again from the table when a segment is rewritten.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Final, Self

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.former import VersionTag
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import to_number
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

_PART_LETTERS: Final = 32


class PathNumbers:
    """Numbers for hash parts, from 0 in order of first use; one object for a whole cache."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # an int of 160 bits is smaller than its letters, or its bytes

    def __len__(self) -> int:
        return len(self._numbers)

    def of(self, part: str) -> int:
        """Return the number of a hash part."""
        return self._numbers.setdefault(to_number(part.encode()), len(self._numbers))

    def find(self, parts: Iterable[HashPart]) -> Iterator[int]:
        """Yield the numbers of the hash parts that have one."""
        for part in parts:
            number = self._numbers.get(to_number(part.encode()))
            if number is not None:
                yield number


@dataclass(frozen=True, eq=False, repr=False)
class TableRows:
    """The narinfos of one table, in its order."""

    numbers: PathNumbers  # of the whole cache
    paths: "array[int]"  # number of each row's path
    sizes: "array[int]"  # compressed bytes of each row's NAR
    nar_hashes: "array[int]"  # the first 8 bytes of each row's NarHash: enough to tell builds apart
    starts: "array[int]"  # where each row's references start in `references`; then the end of the last
    references: "array[int]"  # numbers of paths, without a row's own

    @classmethod
    def of(cls, narinfos: Iterable[NarInfo], blobs: Mapping[Digest, int], numbers: PathNumbers) -> Self:
        """Read narinfos, one at a time, and add to the numbers, which no other thread may use meanwhile.

        ``blobs`` are the sizes in bytes of each layer of the segment's manifest.
        FormatError if a narinfo is malformed, or its NAR is in no layer.
        """
        paths, sizes, nar_hashes = array("I"), array("Q"), array("Q")
        starts, references = array("I", [0]), array("I")
        for narinfo in narinfos:
            url = NarUrl.parse(narinfo.url)
            if url.blob not in blobs:
                raise FormatError(f"{narinfo.store_path}: its NAR is in no layer of the manifest")
            own = numbers.of(narinfo.store_path.hash_part)
            paths.append(own)
            sizes.append(blobs[url.blob] if url.length is None else url.length)
            nar_hashes.append(int.from_bytes(narinfo.nar_hash.digest[:8]))
            others = (numbers.of(reference[:_PART_LETTERS]) for reference in narinfo.references)
            references.extend(number for number in others if number != own)
            starts.append(len(references))
        return cls(numbers, paths, sizes, nar_hashes, starts, references)


@dataclass(frozen=True, eq=False, repr=False)
class GcTable:
    """A table, as gc holds it."""

    header: TableHeader
    records: tuple[Record, ...]  # of publishes and pins
    size: int  # of its text in bytes
    rows: TableRows  # its narinfos
    narinfos: Callable[[], Iterator[NarInfo]]  # parses them again, in the same order


class PathGraph:
    """What each path refers to, in any of its variants; ``count`` paths are listed or referred to."""

    def __init__(self, tables: Iterable[GcTable]) -> None:
        rows_of = [table.rows for table in tables]
        self.numbers = rows_of[0].numbers if rows_of else PathNumbers()
        self.count = len(self.numbers)
        # Where the references of each path start in one array of all of them.
        starts = array("I", bytes(4 * (self.count + 1)))
        for rows in rows_of:
            for row, path in enumerate(rows.paths):
                starts[path + 1] += rows.starts[row + 1] - rows.starts[row]
        for path in range(self.count):
            starts[path + 1] += starts[path]
        self._starts = starts
        self._references = array("I", bytes(4 * starts[self.count]))
        filled = array("I", starts)
        for rows in rows_of:
            for row, path in enumerate(rows.paths):
                mine = rows.references[rows.starts[row] : rows.starts[row + 1]]
                self._references[filled[path] : filled[path] + len(mine)] = mine
                filled[path] += len(mine)

    def references(self, path: int) -> "array[int]":
        """Return what a path refers to, possibly with duplicates."""
        return self._references[self._starts[path] : self._starts[path + 1]]

    def reach(self, starts: Iterable[HashPart]) -> bytearray:
        """Walk to paths that no segment lists; returns one byte per number, 1 for what was reached."""
        reached = bytearray(self.count)
        waiting = list(self.numbers.find(starts))
        while waiting:
            path = waiting.pop()
            if not reached[path]:
                reached[path] = 1
                waiting += (other for other in self.references(path) if not reached[other])
        return reached


class Place(Enum):
    """Where a segment was found."""

    INDEX = "the index lists it"
    TAG = "it counts by its tag, and the index does not list it"
    UNLISTED = "its tag is older than the watermark, and the index does not list it"


@dataclass(frozen=True, eq=False)
class StoredSegment:
    """One segment."""

    segment: Segment  # as the index lists it, with its mark; otherwise from its manifest
    place: Place  # where it was found
    layers: tuple[Descriptor, ...] = ()  # of its manifest, the table first; empty if that is gone
    table: GcTable | None = None  # None if a condemned or unlisted segment cannot be read

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
    def variants(self) -> Iterator[tuple[int, int]]:
        """Numbers of its paths, each with the beginning of its NarHash."""
        return zip(self.paths, self.table.rows.nar_hashes if self.table is not None else (), strict=True)

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
    """A version of the index that ``cache-index`` left, or a segment of one that has no tag."""

    digest: Digest
    created: datetime  # when the repository took it, or the cache ceased to name it
    size: int  # in bytes
    is_segment: bool = False
    is_surplus: bool = False  # whether there are so many newer ones that it goes before the grace is over
    tags: tuple[str, ...] = ()  # of its own


@dataclass(frozen=True, eq=False)
class GcState:
    """A repository at gc's start."""

    started: datetime  # time before anything was read, from which the age of marks is measured
    segments: tuple[StoredSegment, ...] = ()  # all that the index lists or a tag names
    former_indexes: tuple[FormerIndex, ...] = ()  # that the repository can list, or the index remembers
    tags: frozenset[SegmentTag] = frozenset()  # of segments
    index: CacheIndex = field(default_factory=CacheIndex)  # with what counts by its tag
    version_tags: tuple[VersionTag, ...] = ()  # of the index, but for the present one
    other_tags: tuple[str, ...] = ()  # of neither segments nor the index
    forgotten: frozenset[Digest] = frozenset()  # that the index remembers, and the repository has no more

    @cached_property
    def graph(self) -> PathGraph:
        """What each path refers to; for a large cache this takes seconds."""
        return PathGraph(one.table for one in self.segments if one.table is not None)

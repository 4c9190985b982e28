"""The inventory: all that a cache lists, and what its publishes recorded, for people to look at.

The catalog answers one question fast, and the inventory all of them at leisure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from nixcache_oci.cache.record import PublishRecord, Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_set import TableSet
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath


@dataclass(frozen=True, slots=True)
class Entry:
    """One narinfo, where it is listed.

    Attributes:
        narinfo: as served.
        segment: that lists it; None for a version 1 cache.
    """

    narinfo: NarInfo
    segment: Segment | None

    @property
    def published(self) -> datetime | None:
        """When, or None where a version 1 cache does not tell."""
        return self.segment.created if self.segment is not None else None

    @property
    def is_condemned(self) -> bool:
        """Whether gc found it dead."""
        return self.segment is not None and self.segment.condemned is not None


@dataclass(frozen=True, slots=True)
class Root:
    """What the publishes of one scope say of one name.

    Attributes:
        scope: that it belongs to.
        name: of the output.
        paths: what the last good build became; several for a derivation of several outputs.
        built: when that was published, or None where it never was.
        failed: when it last failed, where that was later.
    """

    scope: str
    name: str
    paths: tuple[StorePath, ...]
    built: datetime | None
    failed: datetime | None


@dataclass(frozen=True, slots=True)
class Inventory:
    """All of a cache.

    Attributes:
        tables: the tables that could be had.
    """

    tables: TableSet

    def entries(self) -> Iterator[Entry]:
        """Go through every narinfo; one that is malformed is served to nobody, and left out."""
        for file, segment in self._files():
            for row in range(file.count):
                entry = _entry(file, row, segment)
                if entry is not None:
                    yield entry

    def find(self, hash_part: HashPart) -> list[Entry]:
        """Find all variants of a store object, the newest first."""
        rows = ((file, file.find(hash_part), segment) for file, segment in self._files())
        found = [_entry(file, row, segment) for file, row, segment in rows if row is not None]
        known = [entry for entry in found if entry is not None]
        return sorted(known, key=lambda entry: (entry.published is not None, entry.published), reverse=True)

    def records(self) -> Iterator[Record]:
        """Go through all records.

        Raises:
            FormatError: one is malformed.
        """
        for file, _ in self._files():
            yield from file.records()

    def roots(self) -> list[Root]:
        """Tell the newest state of each root, by scope and name.

        Raises:
            FormatError: a record is malformed.
        """
        publishes = sorted(
            (record for record in self.records() if isinstance(record, PublishRecord)),
            key=lambda record: record.time,
        )
        found: dict[tuple[str, str], Root] = {}
        for record in publishes:
            for name in dict.fromkeys(name for name, _ in record.roots):
                paths = tuple(path for root, path in record.roots if root == name)
                found[record.scope, name] = Root(record.scope, name, paths, record.time, None)
            for name in record.failed:
                before = found.get((record.scope, name))
                paths, built = (before.paths, before.built) if before is not None else ((), None)
                found[record.scope, name] = Root(record.scope, name, paths, built, record.time)
        return [found[key] for key in sorted(found)]

    def _files(self) -> Iterator[tuple[TableFile, Segment | None]]:
        listing = self.tables.listing
        for segment in listing.segments:
            yield self.tables.tables[segment.table], segment
        if listing.version1 is not None:
            yield self.tables.tables[listing.version1], None


def _entry(file: TableFile, row: int, segment: Segment | None) -> Entry | None:
    try:
        return Entry(NarInfo.parse(file.text(row)), segment)
    except FormatError:
        return None

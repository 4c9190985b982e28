"""The inventory: everything that a cache lists and its publishes recorded, for people to inspect.

The catalog answers one question fast, the inventory all of them slowly.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from nixcache_oci.cache.keepers import Root, newest_roots
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_set import TableSet
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath

VERSION1: Final = "version 1"
"""In place of a segment's tag, in a cache without segments."""

# The fields in the order in which tables are written; anything else is parsed.
_USUAL = re.compile(
    rb"StorePath: (?P<path>[^\n]+)\nURL: [^\n]+\nCompression: (?P<compression>[a-z0-9]+)\n"
    rb"(?:FileHash: [^\n]+\n)?(?:FileSize: (?P<file_size>[0-9]{1,19})\n)?"
    rb"NarHash: (?P<nar_hash>sha256:[0-9a-z]{52})\nNarSize: (?P<nar_size>[1-9][0-9]{0,18})\n"
    rb"References: [^\n]*\n(?:Deriver: [^\n]+\n)?(?P<sigs>(?:Sig: [^\n]+\n)*)"
)
_SIGNER = re.compile(r"Sig: ([^:\n]+):")


class _InSegment:
    """Attributes of the segment; ``segment`` is None in a version 1 cache."""

    __slots__ = ()
    segment: Segment | None

    @property
    def published(self) -> datetime | None:
        """When, or None in a version 1 cache."""
        return self.segment.created if self.segment is not None else None

    @property
    def is_condemned(self) -> bool:
        """Whether gc marked the segment as dead."""
        return self.segment is not None and self.segment.condemned is not None


@dataclass(frozen=True, slots=True)
class Entry(_InSegment):
    """One listed narinfo.

    Attributes:
        narinfo: as served.
        segment: that lists it; None in a version 1 cache.
    """

    narinfo: NarInfo
    segment: Segment | None

    @property
    def url(self) -> NarUrl:
        """The URL of its NAR."""
        return NarUrl.parse(self.narinfo.url)

    @property
    def listed_by(self) -> str:
        """Tag of the segment."""
        return _tag(self.segment)


@dataclass(frozen=True, slots=True)
class Listed(_InSegment):
    """What a list shows of a store path.

    Attributes:
        store_path: of the object.
        nar_hash: as in the narinfo.
        nar_size: bytes, uncompressed.
        file_size: bytes, compressed, or None.
        compression: of its NAR.
        signed_by: names of the keys; nothing is verified.
        segment: that lists it; None in a version 1 cache.
    """

    store_path: StorePath
    nar_hash: str
    nar_size: int
    file_size: int | None
    compression: str
    signed_by: tuple[str, ...]
    segment: Segment | None

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Convert an entry."""
        narinfo = entry.narinfo
        return cls(
            narinfo.store_path,
            str(narinfo.nar_hash),
            narinfo.nar_size,
            narinfo.file_size,
            narinfo.compression,
            tuple(sig.key_name for sig in narinfo.sigs),
            entry.segment,
        )


@dataclass(frozen=True, slots=True)
class InventoryPaths:
    """The store paths of a cache.

    Attributes:
        paths: each once, however many segments list it.
        malformed: tag of each segment with malformed narinfos, and the first error.
    """

    paths: tuple[Listed, ...]
    malformed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything in the readable tables of a cache."""

    tables: TableSet

    def entries(self) -> Iterator[Entry]:
        """Iterate over narinfos; malformed ones are not served, and left out."""
        for file, segment in self._files():
            for row in range(file.count):
                try:
                    yield _entry(file, row, segment)
                except FormatError:
                    continue

    def contents(self) -> InventoryPaths:
        """List every store path without validating its narinfo, which takes five times as long.

        Of several variants, the one is listed that clients get by default.
        """
        best: dict[HashPart, Listed] = {}
        malformed: dict[str, str] = {}
        for file, segment in self._files():
            for row in range(file.count):
                try:
                    listed = _listed(file, row, segment)
                except FormatError as error:
                    malformed.setdefault(_tag(segment), str(error))
                    continue
                other = best.setdefault(listed.store_path.hash_part, listed)
                if other is not listed:
                    best[listed.store_path.hash_part] = min(other, listed, key=_rank)
        return InventoryPaths(tuple(best.values()), malformed)

    def find(self, hash_part: HashPart) -> list[Entry]:
        """Find all variants of a store object; the first is the one that clients get."""
        found = []
        for file, row, segment in self._rows(hash_part):
            try:
                found.append(_entry(file, row, segment))
            except FormatError:
                continue
        return sorted(found, key=lambda entry: _rank(Listed.of(entry)))

    def malformed(self, hash_part: HashPart) -> dict[str, str]:
        """Find the malformed variants of a store object: segment tag and error."""
        found = {}
        for file, row, segment in self._rows(hash_part):
            try:
                _entry(file, row, segment)
            except FormatError as error:
                found[_tag(segment)] = str(error)
        return found

    def records(self) -> Iterator[Record]:
        """Iterate over all records.

        Raises:
            FormatError: one is malformed.
        """
        for file, _ in self._files():
            yield from file.records()

    def readable_records(self) -> tuple[list[Record], dict[str, str]]:
        """Read all readable records; also returns the tags and errors of other segments."""
        readable: list[Record] = []
        malformed: dict[str, str] = {}
        for file, segment in self._files():
            try:
                readable += file.records()
            except FormatError as error:
                malformed[_tag(segment)] = str(error)
        return readable, malformed

    def roots(self) -> list[Root]:
        """Return the newest state of each root, by scope and name, as far as records are readable."""
        readable, _ = self.readable_records()
        return newest_roots(readable)

    def _files(self) -> Iterator[tuple[TableFile, Segment | None]]:
        listing = self.tables.listing
        for segment in listing.segments:
            yield self.tables.tables[segment.table], segment
        if listing.version1 is not None:
            yield self.tables.tables[listing.version1], None

    def _rows(self, hash_part: HashPart) -> Iterator[tuple[TableFile, int, Segment | None]]:
        for file, segment in self._files():
            row = file.find(hash_part)
            if row is not None:
                yield file, row, segment


def choose_served(entries: Iterable[Entry]) -> list[Entry]:
    """Choose of each store path what clients get where no variant is preferred for its signature."""
    best: dict[HashPart, Entry] = {}
    for entry in entries:
        other = best.setdefault(entry.narinfo.store_path.hash_part, entry)
        if other is not entry:
            chosen = min(other, entry, key=lambda one: _rank(Listed.of(one)))
            best[entry.narinfo.store_path.hash_part] = chosen
    return list(best.values())


def _tag(segment: Segment | None) -> str:
    return str(segment.tag) if segment is not None else VERSION1


def _entry(file: TableFile, row: int, segment: Segment | None) -> Entry:
    narinfo = NarInfo.parse(file.text(row))
    NarUrl.parse(narinfo.url)  # URLs outside the cache are not served either
    return Entry(narinfo, segment)


def _rank(listed: Listed) -> tuple[bool, str, bool, float]:
    """Order variants as the catalog does: design section 2, "Table"."""
    created = listed.published or EPOCH
    return listed.is_condemned, listed.nar_hash, not listed.signed_by, -created.timestamp()


def _listed(file: TableFile, row: int, segment: Segment | None) -> Listed:
    stanza = file.text(row)
    usual = _USUAL.match(stanza)
    if usual is None:
        return Listed.of(_entry(file, row, segment))
    try:
        path, sigs = usual["path"].decode(), usual["sigs"].decode()
    except UnicodeDecodeError:
        raise FormatError("narinfo: not UTF-8") from None
    return Listed(
        StorePath.parse(path),
        usual["nar_hash"].decode(),
        int(usual["nar_size"]),
        int(usual["file_size"]) if usual["file_size"] is not None else None,
        usual["compression"].decode(),
        tuple(_SIGNER.findall(sigs)),
        segment,
    )

"""The catalog: a snapshot of all narinfos of a cache, over all its tables.

Immutable; a refresh swaps in a new one. Source: design section 2, "Table".
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from operator import itemgetter
from typing import Final, TypeAlias

from nixcache_oci.cache.merged_keys import MergedKeys
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_search import HashPartBytes, row_key
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.nix.variants import is_accepted

MAX_VARIANTS: Final = 8
"""Compared per store path: two builders may race, thousands never do."""
_MAX_VALIDATED: Final = 16
_MAX_VALIDATED_BYTES: Final = 1024 * 1024
# Per look-up: a narinfo of 1 MiB takes 20 ms. The rest is validated by later look-ups.

MAX_AHEAD_BYTES: Final = 16 * 1024 * 1024
"""Narinfos validated ahead of requests: six times the size of 5,000 typical ones."""
_MAX_RECORDED_KEYS: Final = 32
_NAR_HASH = re.compile(rb"^NarHash: (.*)$", re.MULTILINE)

# Values of TableFile.verdicts.
_UNKNOWN: Final = 0
_GOOD: Final = 1
_BAD: Final = 2
# Good, but not as Nix writes it: rendered anew when served, because newer Nix may fail at the text.
_NONCANONICAL: Final = 3
# Good, but signed by no key that clients trust: an upstream may have another signature.
_UNTRUSTED: Final = 4
_NONCANONICAL_UNTRUSTED: Final = 5

_MAX_NONCANONICAL_BYTES: Final = 64 * 1024
"""A larger non-canonical narinfo is a miss: each look-up would render it anew."""


# The place of a table in the order of reading, the table, and a row.
_Variant: TypeAlias = tuple[int, TableFile, int]


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """A table with attributes of its segment.

    Attributes:
        is_condemned: gc marked the segment as dead; its narinfos are the last choice.
        created: the segment's time.
    """

    file: TableFile
    is_condemned: bool
    created: datetime


@dataclass(frozen=True, slots=True)
class Catalog:
    """Looks narinfos up.

    Attributes:
        tables: the newest first, each once.
        keys: of these tables, and maybe of others.
        public_keys: if any, a narinfo must be signed by one of them, or content-addressed.
        store_dir: of all store paths; None for any.
        client_keys: that clients are known to trust; None if signatures by them do not matter.
    """

    tables: tuple[CatalogTable, ...]
    keys: MergedKeys = field(repr=False, compare=False)
    public_keys: tuple[PublicKey, ...]
    store_dir: str | None = None
    client_keys: tuple[PublicKey, ...] | None = None
    # Where the table at each slot of ``keys`` is in ``tables``.
    _places: tuple[int | None, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {id(table.file): place for place, table in enumerate(self.tables)}
        object.__setattr__(self, "_places", tuple(places.get(id(file)) for file in self.keys.files))

    @classmethod
    def of(
        cls,
        tables: Iterable[CatalogTable],
        public_keys: Sequence[PublicKey],
        store_dir: str | None = None,
        client_keys: tuple[PublicKey, ...] | None = None,
        keys: MergedKeys | None = None,
    ) -> "Catalog":
        """Order tables, each once: for its newest segment, preferably not condemned; and merge their keys."""
        newest_first = sorted(tables, key=lambda table: table.created, reverse=True)
        unique: dict[int, CatalogTable] = {}
        for table in sorted(newest_first, key=lambda table: table.is_condemned):
            unique.setdefault(id(table.file), table)
        kept = {id(table) for table in unique.values()}
        chosen = tuple(table for table in newest_first if id(table) in kept)
        keys = keys or MergedKeys.of(table.file for table in chosen)
        return cls(chosen, keys, tuple(public_keys), store_dir, client_keys)

    @property
    def entries(self) -> int:
        """Number of narinfos; one in two tables counts twice."""
        return sum(table.file.count for table in self.tables)

    @property
    def recorded_keys(self) -> tuple[str, ...]:
        """The first public keys that tables name, the oldest table's first."""
        keys = (key for table in reversed(self.tables) for key in table.file.recorded_keys)
        return tuple(islice(dict.fromkeys(keys), _MAX_RECORDED_KEYS))

    def find(self, hash_part: HashPart, most_bytes: int = _MAX_VALIDATED_BYTES) -> bytes | None:
        """Look up a narinfo as it is served; None for a miss.

        A malformed narinfo, or one that no configured key signed, is a miss: Nix would fail on it, while at a
        miss it tries another cache, or builds. So is one whose URL points outside this cache: a registry may
        not send Nix to arbitrary hosts.

        Args:
            hash_part: of the store path.
            most_bytes: limit of narinfos to validate now; beyond, it is a miss for now.
        """
        found = self.find_hash_part(HashPartBytes(hash_part.encode()), most_bytes)
        return found[0] if found is not None else None

    def find_hash_part(
        self, hash_part: HashPartBytes, most_bytes: int = _MAX_VALIDATED_BYTES
    ) -> tuple[bytes, bool] | None:
        """Look up like ``find``; also returns whether a client key is known to have signed it."""
        key = row_key(hash_part)
        found: list[_Variant] = []
        for slot in self.keys.slots(key):
            place, file = self._places[slot], self.keys.files[slot]
            if place is not None and file is not None:
                row = file.find_hash_part(hash_part, key)
                if row is not None:
                    found.append((place, file, row))
        if len(found) > 1:
            found.sort(key=itemgetter(0))
        good = self._choose_good(found, hash_part, most_bytes) if found else found
        if not good:
            return None
        # min() keeps the first of equals, and tables come newest first.
        _, file, row = good[0] if len(good) == 1 else min(good, key=self._rank)
        text, verdict = file.text(row), file.verdicts[row]
        if verdict == _GOOD:
            return text, True
        if verdict != _UNTRUSTED:
            text = NarInfo.parse(text).render().encode()
        return text, verdict == _NONCANONICAL

    def listing(self, hash_part: HashPart) -> list[CatalogTable]:
        """Return the tables that list a store object, whether clients get it or not; the newest first."""
        wanted = HashPartBytes(hash_part.encode())
        key = row_key(wanted)
        places = {
            place
            for slot in self.keys.slots(key)
            if (place := self._places[slot]) is not None
            and self.tables[place].file.find_hash_part(wanted, key) is not None
        }
        return [self.tables[place] for place in sorted(places)]

    def is_kept(self, hash_part: HashPart) -> bool:
        """Tell whether a segment lists it that gc has not marked as dead."""
        return self.find(hash_part) is not None and any(
            not table.is_condemned for table in self.listing(hash_part)
        )

    def prevalidate(self, most: int, most_bytes: int = MAX_AHEAD_BYTES) -> Generator[None, None, None]:
        """Validate the newest narinfos ahead of requests, one per step, but for those that were validated.

        Args:
            most: how many are the newest.
            most_bytes: approximate limit of their size.
        """
        for file, row in self._unknown_rows(most):
            text = file.text(row)
            self._validate(file, row, file.hash_part(row), text)
            most_bytes -= len(text)
            if most_bytes < 0:
                return
            yield

    def _unknown_rows(self, most: int) -> Iterator[tuple[TableFile, int]]:
        for table in self.tables:
            row = -1
            while (row := table.file.verdicts.find(_UNKNOWN, row + 1, most)) >= 0:
                yield table.file, row
            most -= table.file.count
            if most <= 0:
                return

    def _choose_good(
        self, found: Iterable[_Variant], hash_part: HashPartBytes, most_bytes: int
    ) -> list[_Variant]:
        """Return those that may be served; each look-up validates a bounded number of new ones."""
        good: list[_Variant] = []
        left = _MAX_VALIDATED
        for place, file, row in found:
            verdict = file.verdicts[row]
            if verdict == _UNKNOWN and left > 0 and most_bytes > 0:
                text = file.text(row)
                left -= 1
                most_bytes -= len(text)
                verdict = self._validate(file, row, hash_part, text)
            if verdict not in (_UNKNOWN, _BAD):
                good.append((place, file, row))
                if len(good) == MAX_VARIANTS:
                    break
        return good

    def _rank(self, variant: _Variant) -> tuple[bool, str, bool]:
        place, file, row = variant
        # It was validated, so a search suffices: parsing 1 MiB takes 20 ms.
        text = file.text(row)
        match = _NAR_HASH.search(text)
        nar_hash = str(NixHash.parse(match[1].decode())) if match is not None else ""
        return self.tables[place].is_condemned, nar_hash, b"\nSig:" not in text

    def _validate(self, file: TableFile, row: int, hash_part: HashPartBytes, text: bytes) -> int:
        file.verdicts[row] = verdict = self._verdict(hash_part, text)
        return verdict

    def _verdict(self, hash_part: HashPartBytes, text: bytes) -> int:
        narinfo = _parse(text, hash_part)
        if narinfo is None or not self._is_servable(narinfo):
            return _BAD
        keys = self.client_keys
        is_trusted = keys is None or is_accepted(narinfo, keys)
        if narinfo.render().encode() == text:
            return _GOOD if is_trusted else _UNTRUSTED
        if len(text) > _MAX_NONCANONICAL_BYTES:
            return _BAD
        return _NONCANONICAL if is_trusted else _NONCANONICAL_UNTRUSTED

    def _is_servable(self, narinfo: NarInfo) -> bool:
        if self.store_dir not in (None, narinfo.store_path.store_dir):
            return False
        keys = self.public_keys
        return not keys or is_accepted(narinfo, keys)


def _parse(text: bytes, hash_part: HashPartBytes) -> NarInfo | None:
    try:
        narinfo = NarInfo.parse(text)
        NarUrl.parse(narinfo.url)
    except FormatError:
        return None
    return narinfo if narinfo.store_path.hash_part.encode() == hash_part else None

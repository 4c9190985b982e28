"""The catalog: every narinfo of a cache, over all its tables, as it is at one moment.

It is immutable; a refresh makes a new one and swaps it in. Source: design section 2, "Table".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table import HashLetters, row_key
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_signed_by
from nixcache_oci.nix.store_path import HashPart

# What TableFile.verdicts holds.
_UNKNOWN: Final = 0
_GOOD: Final = 1
_BAD: Final = 2


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """A table with what its segment says of it.

    Attributes:
        is_condemned: gc holds the segment for dead; its narinfos are the last choice.
        created: the segment's time.
    """

    file: TableFile
    is_condemned: bool
    created: datetime


@dataclass(frozen=True, slots=True)
class Catalog:
    """Looks narinfos up.

    Attributes:
        tables: the newest first.
        public_keys: where any are given, a narinfo must be signed by one of them, or name its own content.
    """

    tables: tuple[CatalogTable, ...]
    public_keys: tuple[PublicKey, ...]

    @classmethod
    def of(cls, tables: Iterable[CatalogTable], public_keys: Sequence[PublicKey]) -> "Catalog":
        """Put tables in order."""
        newest_first = sorted(tables, key=lambda table: table.created, reverse=True)
        return cls(tuple(newest_first), tuple(public_keys))

    @property
    def entries(self) -> int:
        """How many narinfos are listed; one that two segments list counts twice."""
        return sum(table.file.count for table in self.tables)

    @property
    def recorded_keys(self) -> tuple[str, ...]:
        """The public keys that tables name, the oldest table's first."""
        keys = (key for table in reversed(self.tables) for key in table.file.header.public_keys)
        return tuple(dict.fromkeys(keys))

    def find(self, hash_part: HashPart) -> bytes | None:
        """Look one narinfo up, as it is served; None for a miss.

        A malformed narinfo, or one that no configured key signed, is a miss: Nix would fail on it, where it
        goes on to another cache, or builds, at a miss. So is one whose NAR is said to lie outside this cache:
        a registry may not send Nix to any address that it likes.
        """
        return self.find_letters(HashLetters(hash_part.encode()))

    def find_letters(self, letters: HashLetters) -> bytes | None:
        """Look up as ``find`` does."""
        key = row_key(letters)
        good: list[tuple[CatalogTable, int]] = []
        for table in self.tables:
            file = table.file
            row = file.find_letters(letters, key)
            if row is not None and (file.verdicts[row] or self._judge(file, row, letters)) == _GOOD:
                good.append((table, row))
        if not good:
            return None
        # min() keeps the first of equals, and tables come newest first.
        table, row = good[0] if len(good) == 1 else min(good, key=_rank)
        return table.file.text(row)

    def judge_ahead(self, most: int) -> Iterator[None]:
        """Validate narinfos that nobody has asked for yet, the newest tables' first, one at each step.

        Args:
            most: how many.
        """
        for file, row in islice(self._unknown_rows(), most):
            self._judge(file, row, file.letters(row))
            yield

    def _unknown_rows(self) -> Iterator[tuple[TableFile, int]]:
        for table in self.tables:
            row = -1
            while (row := table.file.verdicts.find(_UNKNOWN, row + 1)) >= 0:
                yield table.file, row

    def _judge(self, file: TableFile, row: int, letters: HashLetters) -> int:
        narinfo = _parse(file.text(row), letters)
        is_good = narinfo is not None and (not self.public_keys or self._is_trusted(narinfo))
        file.verdicts[row] = _GOOD if is_good else _BAD
        return file.verdicts[row]

    def _is_trusted(self, narinfo: NarInfo) -> bool:
        return is_signed_by(narinfo, self.public_keys) or is_content_addressed(narinfo)


def _rank(variant: tuple[CatalogTable, int]) -> tuple[bool, str]:
    table, row = variant
    return table.is_condemned, str(NarInfo.parse(table.file.text(row)).nar_hash)


def _parse(text: bytes, letters: HashLetters) -> NarInfo | None:
    try:
        narinfo = NarInfo.parse(text)
        NarUrl.parse(narinfo.url)
    except FormatError:
        return None
    return narinfo if narinfo.store_path.hash_part.encode() == letters else None

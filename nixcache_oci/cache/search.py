"""Searching a cache by name: what people remember of a store path is a part of it.

Names are read where the tables have them, and nothing is kept for it in memory. Every search is a job in
short steps, between which others get their turn: see ``run_in_slices``.
"""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart

if TYPE_CHECKING:
    from nixcache_oci.cache.table_search import Named

MAX_QUERY_CHARACTERS: Final = 300
"""More than any base name has."""

MAX_WORDS: Final = 8
# What is done in one step takes at most about a tenth of a millisecond.
_STEP_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for.

    Attributes:
        words: a name has all of them, in any case; in lower case.
        hash_part: of a store path that was given as a whole, or None.
    """

    words: tuple[str, ...]
    hash_part: HashPart | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parts of a name, a hash part, a base name, or a store path; what is too long is cut."""
        text = text[:MAX_QUERY_CHARACTERS].strip()
        base_name = text.rpartition("/")[2]
        start, dash, _ = base_name.partition("-")
        try:
            hash_part = HashPart(start)
        except FormatError:
            return cls(tuple(text.lower().split())[:MAX_WORDS])
        return cls(() if dash else (start,), hash_part)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look for."""
        return not self.words and self.hash_part is None


@dataclass(frozen=True, slots=True)
class FoundPath:
    """A store path that was found.

    Attributes:
        narinfo: as served.
        published: when the newest segment that lists it was published; None in a version 1 cache.
    """

    narinfo: NarInfo
    published: datetime | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found, the newest first; whether that is all of it."""

    paths: tuple[FoundPath, ...] = ()
    is_all: bool = True


def search(catalog: Catalog, query: Query, most: int) -> Generator[None, None, Findings]:
    """Find store paths that clients get: the newest first, then those whose names begin with the first word.

    Args:
        catalog: of the cache.
        query: what to look for.
        most: how many to return.
    """
    found: dict[HashPart, FoundPath] = {}
    if query.hash_part is not None:
        for table in catalog.listing(query.hash_part)[:1]:
            _add(found, catalog, query.hash_part, table)
        yield
    words = tuple(word.encode(errors="replace") for word in query.words)
    for table in catalog.tables if words else ():
        named: list[Named] = []
        for start in range(0, table.file.count, _STEP_ROWS):
            rows = range(start, min(start + _STEP_ROWS, table.file.count))
            last = named[-1] if len(named) > most else None
            if found_here := table.file.named(words, rows, last):
                named = sorted([*named, *found_here])[: most + 1]
            yield
        for _, _, row in named:
            with suppress(FormatError):
                _add(found, catalog, HashPart(table.file.hash_part(row).decode()), table)
            if len(found) > most:
                return Findings(tuple(found.values())[:most], is_all=False)
            yield
    return Findings(tuple(found.values()))


def _add(
    found: dict[HashPart, FoundPath], catalog: Catalog, hash_part: HashPart, table: CatalogTable
) -> None:
    text = catalog.find(hash_part) if hash_part not in found else None
    if text is not None:
        published = table.created if table.created != EPOCH else None
        found[hash_part] = FoundPath(NarInfo.parse(text), published)

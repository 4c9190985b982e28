"""What gc holds in memory: numbers, and no parsed narinfos."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.gc.state import GcTable, PathGraph, PathNumbers, TableRows
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci.digest import Digest
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED

PACK = Digest.of(b"pack")
BLOBS = {PACK: 10**7}
MANY = 20_000
REFERENCES = 8
MOST_BYTES_A_PATH = 250  # so that a million paths take 400 MB with all that a program needs


def narinfo(name: str, *references: str) -> NarInfo:
    path = StorePath("/nix/store", hash_part_of(name), name)
    others = tuple(f"{hash_part_of(one)}-{one}" for one in references)
    return replace(store_object("x").narinfo, store_path=path, url=str(NarUrl(PACK, 0, 7)), references=others)


def graph_of(numbers: PathNumbers, *tables: list[NarInfo]) -> PathGraph:
    def table(narinfos: list[NarInfo]) -> GcTable:
        rows = TableRows.of(narinfos, BLOBS, numbers)
        return GcTable(TableHeader(CREATED), (), 0, rows, lambda: iter(narinfos))

    return PathGraph(map(table, tables))


NAMES = [f"path-{number}" for number in range(8)]
references = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from([*NAMES, "upstream"])))


@given(st.lists(references, max_size=3), st.sets(st.sampled_from(NAMES)))
def test_what_is_reached_is_what_sets_of_names_would_tell(
    tables: list[dict[str, set[str]]], roots: set[str]
) -> None:
    """Over all variants of a path: each table may say something else of it."""
    numbers = PathNumbers()
    graph = graph_of(numbers, *([narinfo(name, *found) for name, found in table.items()] for table in tables))
    reached = graph.reach(HashPart(hash_part_of(name)) for name in roots)
    known = {
        name for table in tables for name in [*table, *(one for found in table.values() for one in found)]
    }
    expected = roots & known
    waiting = list(expected)
    while waiting:
        name = waiting.pop()
        for table in tables:
            waiting += table.get(name, set()) - expected
            expected |= table.get(name, set())
    found = {
        name for name in known for number in numbers.find([HashPart(hash_part_of(name))]) if reached[number]
    }
    assert found == expected


def test_a_path_takes_little_memory() -> None:
    """Parsed, a narinfo takes two thousand bytes: a large cache could not be collected on a small machine."""

    def many() -> Iterator[NarInfo]:
        for number in range(MANY):
            yield narinfo(str(number), *(str((number * 7 + step) % MANY) for step in range(REFERENCES)))

    tracemalloc.start()
    try:
        rows = TableRows.of(many(), BLOBS, PathNumbers())
        graph = PathGraph([GcTable(TableHeader(CREATED), (), 0, rows, lambda: iter(()))])
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert graph.count == MANY
    assert size < MOST_BYTES_A_PATH * MANY


def test_a_nar_in_no_layer_is_refused() -> None:
    """Its bytes could not be carried along."""
    with pytest.raises(FormatError, match="is in no layer"):
        TableRows.of([narinfo("x")], {}, PathNumbers())

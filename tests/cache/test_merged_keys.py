"""One sorted list over all tables answers as a walk over them does, however it came about."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache import merged_keys
from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.merged_keys import MergedKeys
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.table_file import TableFile, TableFileWriter
from nixcache_oci.cache.table_search import HashPartBytes, row_key
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import CREATED

KEYS = [SecretKey.generate(f"key-{number}") for number in range(6)]
# Alike in 9 characters, which the list holds; in 10, of which it holds some; in 12, as many as a key has.
STARTS = ("", "0" * 9, "0" * 10, "0" * 12, "z" * 12)
HASH_PARTS = sorted({HashPart((start + letter * 32)[:32]) for start in STARTS for letter in "01az"})
SMALL = {
    "_FEWEST_PIECE_VALUES": 1,
    "_MOST_PIECE_VALUES": 4,
    "_PIECE_VALUES": 2,
    "_ROUND_ROWS": 9,
    "_STEP_ROWS": 3,
    "_STEP_SORTED": 4,
}
HEAD = render_table(Table(TableHeader(CREATED)))


def write(folder: Path, text: bytes) -> TableFile:
    writer = TableFileWriter(RootedPath.of(folder / f"{Digest.of(text).hex}.table"))
    writer.write_text(text)
    file = writer.finish(Digest.of(text))
    writer.close()
    return file


def narinfo_of(hash_part: HashPart, number: int, keys: Sequence[SecretKey]) -> NarInfo:
    narinfo = store_object("x").narinfo
    path = replace(narinfo.store_path, hash_part=hash_part)
    narinfo = replace(narinfo, store_path=path, nar_hash=NixHash(bytes([0] * 31 + [number])))
    return replace(narinfo, sigs=tuple(key.sign(fingerprint(narinfo)) for key in keys))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[CatalogTable]:
    """Twelve, each path in several of them."""
    folder = tmp_path_factory.mktemp("tables")
    made = []
    for number in range(12):
        narinfos = [
            narinfo_of(hash_part, (number * place) % 3, KEYS[number // 2 :][: number % 2])
            for place, hash_part in enumerate(HASH_PARTS)
            if (number + place) % 5 < number % 4  # none at all in a third of the tables
        ]
        created = CREATED + timedelta(hours=number * 7 % 5)
        text = render_table(Table(TableHeader(created, source=str(number)), (), tuple(narinfos)))
        made.append(CatalogTable(write(folder, text), is_condemned=number % 3 == 1, created=created))
    return made


@pytest.fixture(scope="module")
def walk(tables: list[CatalogTable]) -> Callable[[Sequence[CatalogTable]], list[bytes | None]]:
    """Ask one table after another for each path, and choose as design section 2 says."""
    texts: dict[int, list[bytes]] = {}
    for table in tables:
        alone = Catalog.of([table], ())
        texts[id(table)] = [alone.find(part) or b"" for part in HASH_PARTS]

    def rank(found: tuple[CatalogTable, bytes]) -> tuple[bool, bytes, bool]:
        table, text = found
        return table.is_condemned, text.partition(b"NarHash: ")[2][:64], b"\nSig:" not in text

    def choose(tables: Sequence[CatalogTable], place: int) -> bytes | None:
        newest_first = sorted(tables, key=lambda table: table.created, reverse=True)
        found = [(table, texts[id(table)][place]) for table in newest_first if texts[id(table)][place]]
        return min(found, key=rank)[1] if found else None

    return lambda tables: [choose(tables, place) for place in range(len(HASH_PARTS))]


def update(keys: MergedKeys, files: Iterable[TableFile]) -> tuple[MergedKeys, int]:
    """Run an update to its end, and count its steps."""
    steps, updating = 0, keys.updated(files)
    while True:
        try:
            next(updating)
        except StopIteration as end:
            return end.value, steps
        steps += 1


@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=6))
def test_any_way_leads_to_the_answers_of_a_walk(
    tables: list[CatalogTable],
    walk: Callable[[Sequence[CatalogTable]], list[bytes | None]],
    looks: list[set[int]],
) -> None:
    """Tables come and go in any order; what was built before still answers as it did."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "_PIECE_VALUES": 2,
            "_MOST_PIECE_VALUES": 4,
            "_STEP_ROWS": 3,
            "_ROUND_ROWS": 9,
        }.items():
            patch.setattr(merged_keys, name, value)
        patch.setattr(merged_keys, "_STEP_SORTED", 4)
        patch.setattr(merged_keys, "_FEWEST_PIECE_VALUES", 1)
        keys, catalogs = MergedKeys(), []
        for look in looks:
            listed = [tables[number] for number in sorted(look)]
            keys, _ = update(keys, (table.file for table in listed))
            catalogs.append((listed, Catalog.of(listed, (), keys=keys)))
            catalogs.append((listed, Catalog.of(listed, ())))
    for listed, catalog in catalogs:
        assert [catalog.find(part) for part in HASH_PARTS] == walk(listed)


def make_rows(folder: Path, hash_parts: Iterable[str]) -> TableFile:
    """A table of many rows, none of which can be served."""
    rows = "".join(f"\nStorePath: /nix/store/{part}-x\n" for part in sorted(hash_parts))
    return write(folder, HEAD + rows.encode())


def spread(number: int) -> str:
    return Digest.of(str(number).encode()).hex.translate(str.maketrans("e", "z"))[:32]


def crowd(number: int) -> str:
    return "0" * 9 + spread(number)[:23]


@pytest.mark.parametrize("choose", [spread, crowd])
def test_any_distribution_is_found(tmp_path: Path, choose: Callable[[int], str]) -> None:
    """A registry may choose hash parts that begin alike, so that nothing is gained by their first bits."""
    parts = [[choose(10_000 * table + row) for row in range(4000)] for table in range(3)]
    files = [make_rows(tmp_path, each) for each in parts]
    keys, _ = update(MergedKeys(), files)
    keys, _ = update(keys, files[1:])
    for number, wanted in enumerate(parts):
        for part in wanted[::100]:
            hash_part = HashPartBytes(part.encode())
            key = row_key(hash_part)
            found = [keys.files[slot] for slot in keys.slots(key)]
            holding = [one for one in found if one and one.find_hash_part(hash_part, key) is not None]
            assert holding == files[1:][number - 1 : number]
            assert None not in found
            assert len(found) == len(set(map(id, found)))


def test_an_update_costs_what_is_new(tmp_path: Path) -> None:
    """Not what is there: caches have a million paths, and are published to every few minutes."""
    files = [make_rows(tmp_path, map(spread, range(start, start + 5000))) for start in range(0, 20_000, 5000)]
    keys, first = update(MergedKeys(), files)
    new = make_rows(tmp_path, map(spread, range(20_000, 20_003)))
    keys, steps = update(keys, [*files, new])
    assert steps <= 6 < first
    keys, steps = update(keys, files)
    assert steps <= 6
    assert update(keys, files)[1] == 0

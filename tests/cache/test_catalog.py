"""The catalog: which of several narinfos is served, and which is none."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.catalog import MAX_VARIANTS, Catalog, CatalogTable
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_search import HashPartBytes, row_key
from nixcache_oci.cli.demo import make_sample
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from tests.support.objects import store_object
from tests.support.publish import CREATED
from tests.support.tables import MakeTable

KEY, OTHER = SecretKey.generate("key-1"), SecretKey.generate("other-1")
PATH = store_object("x").narinfo.store_path


def variant(number: int, *keys: SecretKey) -> NarInfo:
    """The same store path, built anew with another result; a smaller number has a smaller NarHash."""
    narinfo = replace(store_object("x").narinfo, nar_hash=NixHash(bytes([0] * 31 + [number])))
    return replace(narinfo, sigs=tuple(key.sign(fingerprint(narinfo)) for key in keys))


def find(tables: Sequence[CatalogTable], *keys: SecretKey) -> str | None:
    catalog = Catalog.of(tables, [key.public_key for key in keys])
    found = [catalog.find(PATH.hash_part) for _ in range(2)]
    assert found[0] == found[1], "what was remembered differs from what was found"
    return found[0].decode() if found[0] is not None else None


def test_the_smallest_nar_hash_wins(make_table: MakeTable) -> None:
    """All readers choose the same of two that raced, whatever order they read them in."""
    one, two = make_table(variant(1)), make_table(variant(2), hours=1)
    assert find([one, two]) == find([two, one]) == variant(1).render()


def test_one_that_is_not_condemned_wins_over_that(make_table: MakeTable) -> None:
    """A condemned segment is the last choice; alone, it still serves."""
    condemned, live = make_table(variant(1), condemned=True), make_table(variant(2))
    assert find([condemned, live]) == variant(2).render()
    assert find([condemned]) == variant(1).render()


def test_one_that_is_signed_wins_over_both(make_table: MakeTable) -> None:
    """What Nix would refuse is no choice at all."""
    signed = make_table(variant(3, KEY), condemned=True)
    tables = [make_table(variant(1)), make_table(variant(2, OTHER)), signed]
    assert find(tables, KEY) == variant(3, KEY).render()


def test_the_newest_wins_where_all_else_is_equal(make_table: MakeTable) -> None:
    """A narinfo that was listed again has more signatures."""
    old, new = make_table(variant(1, KEY)), make_table(variant(1, KEY, OTHER), hours=1)
    assert find([old, new]) == find([new, old]) == variant(1, KEY, OTHER).render()


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_one_that_anybody_signed_wins_over_that(make_table: MakeTable, hours: int) -> None:
    """A path that is signed later is served so, whatever two publishers' clocks say."""
    unsigned, signed = make_table(variant(1)), make_table(variant(1, KEY), hours=hours)
    assert find([unsigned, signed]) == find([signed, unsigned]) == variant(1, KEY).render()


def test_with_keys_what_is_not_signed_is_a_miss(make_table: MakeTable) -> None:
    """Unsigned, signed by another key, or signed for other content."""
    forged = replace(variant(1), sigs=variant(2, KEY).sigs)
    for narinfo in (variant(1), variant(1, OTHER), forged):
        assert find([make_table(narinfo)], KEY) is None
        assert find([make_table(narinfo)]) == narinfo.render()
    assert find([make_table(variant(1, OTHER, KEY))], KEY) is not None


def test_what_names_its_own_content_needs_no_signature(make_table: MakeTable) -> None:
    """Nix takes it without one; but only where the path follows from the content address."""
    sample, _ = make_sample("/nix/store")
    stolen = replace(sample, store_path=replace(sample.store_path, hash_part=PATH.hash_part))
    catalog = Catalog.of([make_table(sample), make_table(stolen)], [KEY.public_key])
    assert catalog.find(sample.store_path.hash_part) is not None
    assert catalog.find(PATH.hash_part) is None


def test_a_malformed_narinfo_is_a_miss(make_table: MakeTable) -> None:
    """Nix would stop at it; another variant may be good."""
    head = render_table(Table(TableHeader(CREATED)))
    broken = make_table(text=head + f"\nStorePath: {PATH}\nURL: nar/x.nar\n".encode())
    assert broken.file.count == 1
    assert find([broken]) is None
    assert find([broken, make_table(variant(1))]) == variant(1).render()


@pytest.mark.parametrize(
    "url", ["https://elsewhere.example/x.nar", "nar/unknown.nar", f"nar/{'a' * 64}/0-999999.nar.zst"]
)
def test_a_nar_outside_of_this_cache_is_a_miss(make_table: MakeTable, url: str) -> None:
    """A signature does not cover the URL: a registry must not send Nix to any address that it likes."""
    elsewhere = make_table(replace(variant(1, KEY), url=url))
    assert find([elsewhere], KEY) is None
    assert find([elsewhere, make_table(variant(2, KEY))], KEY) == variant(2, KEY).render()


def test_a_narinfo_is_served_for_its_own_hash_part_only(tmp_path: Path, make_table: MakeTable) -> None:
    """A keys file that leads elsewhere, to the hash part in a reference, leads to nothing."""
    other = store_object("other").narinfo.store_path
    make_table(replace(variant(1), references=(other.base_name,)))
    [path] = tmp_path.glob("*.table")
    position = path.read_bytes().index(other.hash_part.encode())
    keys = path.with_suffix(".keys")
    numbers = struct.pack("=QI", row_key(other.hash_part.encode()), position)
    keys.write_bytes(keys.read_bytes()[: -len(numbers)] + numbers)
    table = CatalogTable(TableFile.open(RootedPath.of(path)), is_condemned=False, created=CREATED)
    assert table.file.find(other.hash_part) == 0
    assert Catalog.of([table], ()).find(other.hash_part) is None


def test_recorded_keys_are_in_the_order_of_the_segments(make_table: MakeTable) -> None:
    """The first one seen is pinned: it must be the oldest segment's."""
    texts = [
        render_table(Table(TableHeader(CREATED + timedelta(hours=hours), public_keys=(key,))))
        for hours, key in [(2, "b:AA"), (1, "a:AA")]
    ]
    tables = [make_table(text=texts[0], hours=2), make_table(text=texts[1], hours=1)]
    assert Catalog.of(tables, ()).recorded_keys == ("a:AA", "b:AA")


def test_what_is_judged_ahead_is_what_would_be_judged_later(make_table: MakeTable) -> None:
    """Good and bad alike; the newest table comes first, and nothing is judged twice."""
    signed, unsigned = store_object("signed").narinfo, store_object("unsigned").narinfo
    signed = replace(signed, sigs=(KEY.sign(fingerprint(signed)),))
    old, new = make_table(variant(1, KEY), unsigned), make_table(signed, variant(2), hours=1)
    catalog = Catalog.of([old, new], [KEY.public_key])
    wanted = [narinfo.store_path.hash_part for narinfo in (signed, unsigned, variant(1))]
    assert len(list(catalog.prevalidate(3))) == 3
    assert (new.file.verdicts.count(0), old.file.verdicts.count(0)) == (0, 1)
    assert list(catalog.prevalidate(3)) == []  # a look at what is new takes no turn for what is old
    assert len(list(catalog.prevalidate(4))) == 1
    ahead = [catalog.find(part) for part in wanted]
    assert ahead == [signed.render().encode(), None, variant(1, KEY).render().encode()]
    for table in (old, new):
        table.file.verdicts[:] = bytes(table.file.count)
    assert [catalog.find(part) for part in wanted] == ahead


def test_a_path_of_another_store_dir_is_a_miss(make_table: MakeTable) -> None:
    """Nix would refuse it, whoever signed it."""
    elsewhere = replace(variant(1), store_path=replace(PATH, store_dir="/gnu/store"))
    tables = [make_table(elsewhere), make_table(variant(2), hours=1)]
    assert Catalog.of(tables[:1], ()).find(PATH.hash_part) == elsewhere.render().encode()
    tables[0].file.verdicts[:] = bytes(1)
    assert Catalog.of(tables[:1], (), "/nix/store").find(PATH.hash_part) is None
    assert Catalog.of(tables, (), "/nix/store").find(PATH.hash_part) == variant(2).render().encode()


def test_a_table_is_searched_once(make_table: MakeTable) -> None:
    """However many segments name it; as long as one of them is not condemned, it is not the last choice."""
    table = make_table(variant(2))
    again = [replace(table, created=CREATED + timedelta(hours=hour)) for hour in range(5)]
    marked = [replace(one, is_condemned=True) for one in again[1:]]
    catalog = Catalog.of([again[0], *marked], ())
    assert catalog.tables == (again[0],)
    assert Catalog.of(marked, ()).tables == (marked[-1],)
    assert Catalog.of([*again, make_table(variant(1), condemned=True)], ()).find(PATH.hash_part) == (
        variant(2).render().encode()
    )


def test_a_look_up_has_a_bounded_cost(make_table: MakeTable) -> None:
    """Thousands of tables may list one path: each look-up validates a few, and compares a few."""
    bad = [make_table(variant(number), hours=number + 1) for number in range(100)]
    good = make_table(variant(200, KEY))
    catalog = Catalog.of([*bad, good], [KEY.public_key])
    judged = []
    while (found := catalog.find(PATH.hash_part)) is None:
        judged.append(sum(table.file.verdicts[0] != 0 for table in bad))
    assert found == variant(200, KEY).render().encode()
    assert judged == list(range(16, 97, 16))
    catalog = Catalog.of(bad, ())
    for table in bad:
        table.file.verdicts[0] = 1
    # Of the newest ones, the smallest.
    assert catalog.find(PATH.hash_part) == variant(100 - MAX_VARIANTS).render().encode()


def test_large_narinfos_are_validated_one_at_a_time(make_table: MakeTable) -> None:
    """One of 1 MiB takes 20 ms, in which nobody else is answered."""
    note = (("Note", "x" * 700_000),)
    tables = [make_table(replace(variant(number), extra=note), hours=number) for number in range(5)]
    catalog = Catalog.of(tables, [KEY.public_key])
    assert catalog.find(PATH.hash_part) is None
    assert [table.file.verdicts[0] for table in tables] == [0, 0, 0, 2, 2]
    assert catalog.find(PATH.hash_part, 1000) is None
    assert [table.file.verdicts[0] for table in tables] == [0, 0, 2, 2, 2]
    assert len(list(catalog.prevalidate(10, 1_000_000))) == 1
    assert [table.file.verdicts[0] for table in tables] == [2, 2, 2, 2, 2]


def test_few_recorded_keys_are_told(make_table: MakeTable) -> None:
    """They are for people to compare."""
    keys = [tuple(f"key-{hour}-{number}:AA" for number in range(8)) for hour in range(10)]
    tables = [
        make_table(text=render_table(Table(TableHeader(CREATED, public_keys=some))), hours=hour)
        for hour, some in enumerate(keys)
    ]
    assert Catalog.of(tables, ()).recorded_keys == sum(keys[:4], ())


@pytest.mark.parametrize(
    "line", ["Sig: x-1:AAAA", "Sig: garbage", "Odd: caf\xe9", "Of the future: 1", f"Sig: {'y' * 70_000}"]
)
def test_what_a_newer_nix_may_stop_at_is_written_anew(make_table: MakeTable, line: str) -> None:
    """An entry of a foreign writer is served without the line that cannot be read, and is no miss for it."""
    narinfo = variant(1)
    text = render_table(Table(TableHeader(CREATED), (), (narinfo,))) + line.encode("latin-1") + b"\n"
    assert find([make_table(text=text)]) == (narinfo.render() if len(line) < 70_000 else None)


def test_a_catalog_knows_which_narinfos_a_counting_key_signed(make_table: MakeTable) -> None:
    """Of the others an upstream may know more; where nobody asks, all are sure."""
    for narinfo, is_sure in ((variant(1, KEY), True), (variant(1, OTHER), False), (variant(1), False)):
        for keys, expected in (((KEY.public_key,), is_sure), ((), False), (None, True)):
            table = make_table(narinfo)
            table.file.verdicts[:] = bytes(1)
            found = Catalog.of([table], (), client_keys=keys).find_hash_part(
                HashPartBytes(PATH.hash_part.encode())
            )
            assert found == (narinfo.render().encode(), expected)

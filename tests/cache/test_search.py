"""Searching by name: what is found, in which order, and that it goes in short steps."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.parallel import run_at_once
from nixcache_oci.cache.search import MAX_QUERY_CHARACTERS, Findings, Query, search
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.nix.store_path import StorePath
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED
from tests.support.tables import MakeTable

KEY = SecretKey.generate("key-1")


def named(name: str, seed: str = "") -> NarInfo:
    path = StorePath("/nix/store", hash_part_of(f"{name}{seed}"), name)
    return replace(store_object(name).narinfo, store_path=path)


def find(
    tables: Sequence[CatalogTable], text: str, most: int = 10, keys: Sequence[SecretKey] = ()
) -> Findings:
    catalog = Catalog.of(tables, [key.public_key for key in keys])
    return run_at_once(search(catalog, Query.parse(text), most))


def names(found: Findings) -> list[str]:
    return [one.narinfo.store_path.name for one in found.paths]


def test_a_part_of_the_name_in_any_case_is_enough(make_table: MakeTable) -> None:
    """All words must be there, in any order; a word of the hash part, or of another path's name, is none."""
    hello = named("Hello-2.12")
    user = replace(named("user-1"), references=(hello.store_path.base_name,))
    table = make_table(hello, user, named("help-2"))
    assert names(find([table], "hELL")) == ["Hello-2.12"]
    assert names(find([table], " 2.12 hello ")) == ["Hello-2.12"]
    assert names(find([table], "hello 3")) == []
    assert names(find([table], hello.store_path.hash_part[:20])) == []
    assert names(find([table], "  ")) == []


def test_the_newest_come_first_then_what_begins_with_the_word(make_table: MakeTable) -> None:
    """A path that two segments list is found once, where it is newest."""
    old = make_table(named("hello-1"), named("hello-3"))
    new = make_table(named("hello-2"), named("ahello"), named("hello-1"), hours=1)
    found = find([old, new], "hello")
    assert names(found) == ["hello-1", "hello-2", "ahello", "hello-3"]
    assert found.is_all
    assert [one.published for one in found.paths] == [CREATED + timedelta(hours=1)] * 3 + [CREATED]


def test_long_narinfos_are_searched_too(make_table: MakeTable) -> None:
    """A few of them are more than is copied at once."""
    references = tuple(sorted(f"{hash_part_of(str(number))}-{number}" for number in range(5000)))
    table = make_table(*(replace(named(f"long-{number}"), references=references) for number in range(3)))
    assert names(find([table], "long")) == ["long-0", "long-1", "long-2"]
    assert names(find([table], "g-1")) == ["long-1"]


def test_what_is_too_much_is_said(make_table: MakeTable) -> None:
    """The first in order are kept, not the first that the table has."""
    table = make_table(*(named(f"x-{number:04}") for number in range(2000)))
    found = find([table], "x", most=3)
    assert (names(found), found.is_all) == (["x-0000", "x-0001", "x-0002"], False)
    assert find([table], "x-0001", most=1).is_all


@pytest.mark.parametrize("text", ["ab", "b", "ab 7", "b 7", "0"])
@pytest.mark.parametrize("most", [1, 3, 40])
def test_leaving_out_early_leaves_out_nothing_else(make_table: MakeTable, text: str, most: int) -> None:
    """Once enough are found, what sorts behind them is not looked at; names that begin with the word are."""
    chosen = random.Random(1)
    held = [f"{chosen.choice(['ab', 'b', 'cab', 'x'])}-{chosen.randrange(500)}" for _ in range(700)]
    found = find([make_table(*(named(name, str(seed)) for seed, name in enumerate(held)))], text, most)
    first, *others = text.split()
    right = [name for name in held if first in name and all(word in name for word in others)]
    right.sort(key=lambda name: (not name.startswith(first), name))
    assert names(found) == right[:most]


def test_only_what_clients_get_is_found(make_table: MakeTable) -> None:
    """With keys configured, that is what one of them signed."""
    signed = named("hello-signed")
    signed = replace(signed, sigs=(KEY.sign(fingerprint(signed)),))
    assert names(find([make_table(signed, named("hello-unsigned"))], "hello", keys=[KEY])) == ["hello-signed"]


@pytest.mark.parametrize("form", ["{path}", "{path.base_name}", "{path.hash_part}", " {path.hash_part}-x "])
def test_a_store_path_is_found_by_its_hash_part(make_table: MakeTable, form: str) -> None:
    """However much of it was pasted."""
    hello = named("hello")
    assert names(find([make_table(hello, named("x"))], form.format(path=hello.store_path))) == ["hello"]


def test_a_name_that_looks_like_a_hash_part_is_found_too(make_table: MakeTable) -> None:
    """32 letters without a dash may be either."""
    name = "a" * 32
    assert names(find([make_table(named(name))], name)) == [name]


@pytest.mark.parametrize("text", ["é" * 9, "\x00", "x" * 10**6, "<script>", "\udcff", "a " * 1000, "/", "-"])
def test_no_query_breaks_a_search(make_table: MakeTable, text: str) -> None:
    """It is cut, and found nowhere."""
    query = Query.parse(text)
    assert sum(map(len, query.words)) <= MAX_QUERY_CHARACTERS
    find([make_table(named("b"))], text)


def test_a_version_1_cache_knows_no_times(make_table: MakeTable) -> None:
    """Its one document counts as older than all."""
    table = replace(make_table(named("hello")), created=EPOCH)
    assert [one.published for one in find([table], "hello").paths] == [None]


def test_a_search_goes_in_short_steps(make_table: MakeTable) -> None:
    """Narinfos are served between them."""
    table = make_table(*(named(f"x-{number:04}") for number in range(2000)))
    steps = sum(1 for _ in search(Catalog.of([table], ()), Query.parse("nothing"), 10))
    assert steps == 20

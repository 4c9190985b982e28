"""What paths reach within a cache, and what reaches them."""

from collections.abc import Sequence
from dataclasses import replace

from nixcache_oci.cache.catalog import Catalog, CatalogTable
from nixcache_oci.cache.closure import (
    Closure,
    Referrers,
    find_reaching,
    find_referrers,
    measure_closure,
)
from nixcache_oci.cache.parallel import run_at_once
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from tests.support.objects import store_object
from tests.support.tables import MakeTable

MOST = 1000


def narinfo(seed: str, *references: NarInfo) -> NarInfo:
    one = store_object(seed).narinfo
    names = sorted(other.store_path.base_name for other in references)
    return replace(one, references=tuple(names), nar_size=100, file_size=10)


BASE = narinfo("base")
LIBRARY = narinfo("library", BASE)
ELSEWHERE = narinfo("elsewhere")
TOP = narinfo("top", LIBRARY, BASE, ELSEWHERE)
OTHER = narinfo("other")


def catalog(*tables: CatalogTable) -> Catalog:
    return Catalog.of(tables, ())


def test_a_closure_is_counted_once_each(make_table: MakeTable) -> None:
    """Also across segments; what the cache does not list is elsewhere."""
    found = catalog(make_table(TOP, OTHER), make_table(LIBRARY, BASE, hours=1))
    assert run_at_once(measure_closure(found, TOP)) == Closure(3, 300, 30, 1)


def test_a_closure_is_followed_up_to_a_limit(make_table: MakeTable) -> None:
    """And says so: what a registry lists may have no end."""
    found = catalog(make_table(TOP, LIBRARY, BASE))
    cut = run_at_once(measure_closure(found, TOP, 2))
    assert (cut.paths, cut.nar_size, cut.file_size, cut.is_whole) == (2, 200, 20, False)
    assert run_at_once(measure_closure(found, TOP, 3)).is_whole


def referrers(found: Catalog, path: StorePath, most: int = 10) -> Referrers:
    return run_at_once(find_referrers(found, path, most))


def test_referrers_are_those_whose_references_name_a_path(make_table: MakeTable) -> None:
    """Not those that have it as a deriver, nor the path itself, and each once."""
    own = replace(BASE, references=(BASE.store_path.base_name,))
    derived = replace(OTHER, deriver=f"{BASE.store_path.base_name}.drv")
    found = catalog(make_table(own, LIBRARY, derived), make_table(TOP, LIBRARY, hours=1))
    assert referrers(found, BASE.store_path) == Referrers((LIBRARY.store_path, TOP.store_path), is_all=True)
    assert referrers(found, OTHER.store_path) == Referrers((), is_all=True)
    assert referrers(found, BASE.store_path, 1).is_all is False


def test_referrers_are_found_wherever_a_step_ends(make_table: MakeTable) -> None:
    """Tables are searched piece by piece, and a name may lie across two of them."""
    users = [narinfo(f"{number:05}", BASE) for number in range(2000)]
    found = catalog(make_table(*users, BASE))
    assert set(referrers(found, BASE.store_path, 900).paths) <= {user.store_path for user in users}
    for user in users[::97]:
        lone = catalog(make_table(user, *(narinfo(f"{number:05}") for number in range(3000, 3900))))
        assert referrers(lone, BASE.store_path).paths == (user.store_path,)


def reaching(found: Catalog, starts: Sequence[NarInfo], wanted: NarInfo, most: int = MOST) -> object:
    paths = [one.store_path for one in starts]
    reached, is_all = run_at_once(find_reaching(found, paths, wanted.store_path, most))
    return {path.name.removeprefix("object-") for path in reached}, is_all


def test_what_reaches_a_path_is_found_from_above(make_table: MakeTable) -> None:
    """Through others, and as itself; the order of the starts does not matter."""
    second = narinfo("second", OTHER, LIBRARY)
    found = catalog(make_table(TOP, LIBRARY, BASE, OTHER, second))
    for starts in ([TOP, OTHER, second, BASE], [BASE, second, OTHER, TOP]):
        assert reaching(found, starts, BASE) == ({"top", "second", "base"}, True)
        assert reaching(found, starts, LIBRARY) == ({"top", "second"}, True)
    assert reaching(found, [TOP], OTHER) == (set(), True)


def test_what_is_followed_is_limited(make_table: MakeTable) -> None:
    """A chain of any length costs no recursion, and no more than so many look-ups."""
    chain = [BASE]
    for number in range(3000):
        chain.append(narinfo(f"{number}", chain[-1]))
    found = catalog(make_table(*chain))
    assert reaching(found, [chain[-1]], BASE, 5000) == ({"2999"}, True)
    assert reaching(found, [chain[-1]], BASE, 100) == (set(), False)


def test_references_in_a_circle_end(make_table: MakeTable) -> None:
    """No store has them, but a registry may list them."""
    one = narinfo("one")
    two = narinfo("two", one)
    found = catalog(make_table(narinfo("one", two), two, BASE))
    assert reaching(found, [two], BASE) == (set(), True)
    assert run_at_once(measure_closure(found, two)).paths == 2

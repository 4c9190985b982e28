"""The orders of a closure: references first."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.nix.closure import find_tops, order_as_unpacked, order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.objects import store_object


def narinfo(name: str, *references: str) -> NarInfo:
    """One that refers to others of these, by their names."""
    base_names = tuple(store_object(one).narinfo.store_path.base_name for one in references)
    return replace(store_object(name).narinfo, references=base_names)


@given(
    st.lists(st.sets(st.integers(0, 9)), max_size=10).flatmap(
        lambda rows: st.permutations(list(enumerate(rows)))
    )
)
def test_what_is_referred_to_comes_first(rows: list[tuple[int, set[int]]]) -> None:
    """Whoever is killed in between has listed whole closures only."""
    narinfos = [
        narinfo(str(number), *(str(one) for one in references if one <= number))
        for number, references in rows
    ]
    ordered = order_by_references(narinfos)
    assert sorted(map(id, ordered)) == sorted(map(id, narinfos))
    known = {one.store_path.base_name for one in narinfos}
    seen: set[str] = set()
    for one in ordered:
        seen.add(one.store_path.base_name)
        assert known & set(one.references) <= seen


def test_what_is_fetched_together_lies_together() -> None:
    """The roots begin, each behind its closure; names that are not there do not matter."""
    shared, mine, yours = (
        narinfo("shared"),
        narinfo("mine", "shared", "elsewhere"),
        narinfo("yours", "shared"),
    )
    roots = [store_object("nowhere").narinfo.store_path, yours.store_path]
    assert order_by_references([mine, shared, yours], roots) == [shared, yours, mine]


def test_names_decide_among_references() -> None:
    """Nix asks in this order: the first pack of a closure should hold what it wants first."""
    names = [f"file-{number}" for number in (0, 1, 10, 2)]
    leaves = [narinfo(name) for name in names]
    root = narinfo("a-root", *reversed(names))
    assert sorted(one.store_path for one in leaves) != [one.store_path for one in leaves]
    assert order_by_references([root, *reversed(leaves)]) == [*leaves, root]
    assert order_by_references(reversed(leaves)) == leaves


def test_a_circle_has_an_end() -> None:
    """Nix makes none, and a forged document may not hang a publish."""
    circle = [narinfo("one", "two"), narinfo("two", "one")]
    assert len(order_by_references(circle)) == 2


def test_a_deep_closure() -> None:
    """The depth of a closure is not limited by Python's stack."""
    names = [f"{number:04}" for number in range(5000)]
    chain = [narinfo(name, *before) for name, *before in zip(names, ["0000", *names])]  # noqa: B905  one less
    assert order_by_references(chain[::-1], [chain[-1].store_path]) == chain


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh"))))
def test_nix_unpacks_references_first(references: dict[str, set[str]]) -> None:
    """Each once; only those in a circle, and what refers to them, may come before a reference."""
    ordered = order_as_unpacked(references)
    assert sorted(ordered) == sorted(references)
    late = {name for name in references if name in reachable(references, name)}
    late |= {name for name in references if late & reachable(references, name)}
    for place, name in enumerate(ordered):
        if name not in late:
            assert references[name] & set(references) - {name} <= set(ordered[:place])


def reachable(references: dict[str, set[str]], start: str) -> set[str]:
    """Follow references to others."""
    found: set[str] = set()
    left = [one for one in references[start] if one != start]
    while left:
        name = left.pop()
        if name in references and name not in found:
            found.add(name)
            left += [one for one in references[name] if one != name]
    return found


def test_what_is_ready_is_unpacked_by_name() -> None:
    """As Nix does, whatever was handed out first."""
    references = {"1-z": [], "2-b": ["1-z"], "3-a": ["2-b"], "4-m": [], "0-c": ["1-z"]}
    assert order_as_unpacked(references) == ["4-m", "1-z", "2-b", "3-a", "0-c"]


def test_tops_are_what_no_other_refers_to() -> None:
    """A reference to itself makes none less, and whoever refers to each other has none."""
    lib, tool, alone = narinfo("lib"), narinfo("tool", "lib", "tool"), narinfo("alone", "gone")
    assert find_tops([lib, tool, alone]) == [tool, alone]
    assert find_tops([narinfo("a", "b"), narinfo("b", "a")]) == []

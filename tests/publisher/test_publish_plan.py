from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, Signature, fingerprint
from nixcache_oci.publisher.publish_plan import PublishPlan, find_dependents, is_upstreams, make_plan
from tests.publisher.made_store import made_info, made_path

UPSTREAM = SecretKey("cache.nixos.org-1", bytes(32))
OURS = SecretKey("ours-1", bytes([1] * 32))
SECOND = SecretKey("second-1", bytes([2] * 32))
STRANGER = SecretKey("ours-1", bytes([3] * 32))  # of the same name, and not the same key
PUBLIC_KEYS = (OURS.public_key, SECOND.public_key)
UPSTREAM_NAMES = frozenset({UPSTREAM.name})


def signed(info: PathInfo, *keys: SecretKey) -> PathInfo:
    return replace(info, sigs=tuple(key.sign(fingerprint(info)) for key in keys))


def listing_of(info: PathInfo, *keys: SecretKey) -> NarInfo:
    """What the cache would list of this object, signed by these keys."""
    return NarInfo(
        store_path=info.store_path,
        url=f"nar/{'0' * 64}.nar.zst",
        compression="zstd",
        nar_hash=info.nar_hash,
        nar_size=info.nar_size,
        references=info.references,
        sigs=signed(info, *keys).sigs,
    )


def plan_of(
    closure: Sequence[PathInfo], listed: Sequence[NarInfo] = (), missing: Sequence[PathInfo] = ()
) -> PublishPlan:
    by_hash_part = {narinfo.store_path.hash_part: narinfo for narinfo in listed}
    gone = {info.store_path.hash_part for info in missing}
    return make_plan(closure, by_hash_part.get, PUBLIC_KEYS, UPSTREAM_NAMES, gone)


def classes(plan: PublishPlan) -> dict[str, list[PathInfo]]:
    return {
        "upstream": list(plan.upstream),
        "cached": list(plan.cached),
        "relist": [info for info, _ in plan.relist],
        "push": list(plan.push),
    }


A = made_info("a")
OTHER_BUILD = made_info("a", b"another NAR")

CASES: Mapping[str, tuple[PathInfo, NarInfo | None, str]] = {
    "built here": (A, None, "push"),
    "signed by us in the store": (signed(A, OURS), None, "push"),
    "signed by an upstream": (signed(A, UPSTREAM), None, "upstream"),
    "signed by an upstream among others": (signed(A, OURS, UPSTREAM), None, "upstream"),
    "an upstream's, and listed": (signed(A, UPSTREAM), listing_of(A, OURS, SECOND), "upstream"),
    "listed": (A, listing_of(A, OURS, SECOND), "cached"),
    "listed with more signatures": (A, listing_of(A, UPSTREAM, OURS, SECOND), "cached"),
    "listed without our signatures": (A, listing_of(A, UPSTREAM), "relist"),
    "listed with one of two": (A, listing_of(A, OURS), "relist"),
    "listed with the other of two": (A, listing_of(A, SECOND), "relist"),
    "listed with a stranger's of our name": (A, listing_of(A, STRANGER, SECOND), "relist"),
    "listed from another build, and signed": (A, listing_of(OTHER_BUILD, OURS, SECOND), "cached"),
}


@pytest.mark.parametrize(("info", "listed", "expected"), CASES.values(), ids=CASES)
def test_what_becomes_of_a_path(info: PathInfo, listed: NarInfo | None, expected: str) -> None:
    """Design section 4, promise 5: upstreams are told by key name, what is listed by good signatures."""
    plan = plan_of([info], [listed] if listed is not None else [])
    assert classes(plan) == {**classes(PublishPlan()), expected: [info]}


FOREIGN = {
    "NAR": listing_of(OTHER_BUILD),
    "size": replace(listing_of(A), nar_size=A.nar_size + 1),
    "references": replace(listing_of(A), references=(made_path("other").base_name,)),
    "signed by one": listing_of(OTHER_BUILD, OURS),
}


@pytest.mark.parametrize("listed", FOREIGN.values(), ids=FOREIGN)
def test_only_what_the_store_vouches_for_is_signed(listed: NarInfo) -> None:
    """Whoever can write to the registry could otherwise have a NAR of their own signed by the publisher."""
    assert classes(plan_of([A], [listed])) == classes(PublishPlan(push=(A,)))


def test_what_an_upstream_does_not_have_is_ours() -> None:
    """An upstream may have signed a path and lost it: then it is treated as any other."""
    a, b, c = (signed(made_info(seed), UPSTREAM) for seed in "abc")
    plan = plan_of([a, b, c], [listing_of(b, OURS, SECOND)], missing=[a, b])
    assert classes(plan) == classes(PublishPlan(upstream=(c,), cached=(b,), push=(a,)))


def test_without_keys_everything_listed_is_cached() -> None:
    """A cache without signatures is one, too."""
    plan = make_plan([A], {A.store_path.hash_part: listing_of(OTHER_BUILD)}.get, (), frozenset())
    assert plan == PublishPlan(cached=(A,))


def test_without_upstream_names_all_is_ours() -> None:
    """Who names no upstream's key publishes the whole closure."""
    info = signed(A, UPSTREAM)
    assert not is_upstreams(info, frozenset())
    assert make_plan([info], lambda _: None, PUBLIC_KEYS, frozenset()) == PublishPlan(push=(info,))


WAYS = ("push", "upstream", "cached", "relist", "foreign", "missing")


@given(st.lists(st.sampled_from(WAYS), max_size=30))
def test_every_path_is_in_one_class_and_in_order(ways: list[str]) -> None:
    """Nothing is lost or done twice, and references stay first."""
    closure: list[PathInfo] = []
    listed: list[NarInfo] = []
    expected: dict[str, list[PathInfo]] = classes(PublishPlan())
    missing: list[PathInfo] = []
    for number, way in enumerate(ways):
        references = [str(number - 1)] if number else []
        info = made_info(str(number), references=references)
        if way in {"upstream", "missing"}:
            info = signed(info, UPSTREAM)
        closure.append(info)
        if way == "missing":
            missing.append(info)
        if way == "foreign":
            listed.append(listing_of(made_info(str(number), b"forged", references=references)))
        if way in {"cached", "relist"}:
            listed.append(listing_of(info, *((OURS, SECOND) if way == "cached" else (OURS,))))
        expected["push" if way in {"foreign", "missing"} else way].append(info)
    plan = plan_of(closure, listed, missing)
    assert classes(plan) == expected
    assert plan.paths == len(closure)
    assert plan.push_bytes == sum(info.nar_size for info in expected["push"])
    assert set(plan.listed) == set(closure) - set(expected["upstream"])


def test_what_is_gone_is_pushed_in_order() -> None:
    """What was counted on and is not there any more is sent, before what refers to it."""
    a, b, c, d = (
        made_info("a"),
        made_info("b", references="a"),
        made_info("c", references="b"),
        made_info("d", references="c"),
    )
    kept = (d, listing_of(d))
    plan = PublishPlan(cached=(a,), relist=((b, listing_of(b)), kept), push=(c,))
    again = plan.pushing({a.store_path.base_name, b.store_path.base_name, made_path("x").base_name})
    assert again == PublishPlan(relist=(kept,), push=(a, b, c))
    assert plan.pushing(set()) == plan


def base_name(seed: str) -> str:
    return made_path(seed).base_name


def test_dependents_are_found_through_others() -> None:
    """A closure is complete or not listed: what reaches a failed path fails with it, and names it."""
    infos = [
        made_info("a", references="a"),
        made_info("b", references="a"),
        made_info("c", references="cb"),
        made_info("d", references="d"),
        made_info("e", references="dc"),
    ]
    failed = {base_name("a")}
    assert find_dependents(infos, failed) == {base_name(seed): base_name("a") for seed in "bce"}
    assert find_dependents(infos, {base_name("d")}) == {base_name("e"): base_name("d")}
    assert find_dependents(infos, set()) == {}


@given(st.data())
def test_dependents_are_all_that_reach_a_failure(data: st.DataObject) -> None:
    """Compared with a plain walk; a cause that is named is one that failed."""
    size = data.draw(st.integers(0, 12))
    edges = {
        number: data.draw(st.sets(st.integers(0, number)), label=f"references of {number}")
        for number in range(size)
    }
    failed = data.draw(st.sets(st.integers(0, max(size - 1, 0))))
    infos = [made_info(str(number), references=[str(each) for each in edges[number]]) for number in edges]
    reaching = set(failed)
    for number, references in edges.items():
        if references & reaching:
            reaching.add(number)
    found = find_dependents(infos, {base_name(str(number)) for number in failed})
    assert set(found) == {base_name(str(number)) for number in reaching - failed}
    assert set(found.values()) <= {base_name(str(number)) for number in failed}


def test_upstreams_are_told_by_name_alone() -> None:
    """A signature of an upstream's name counts whatever it says: who is asked is told by name."""
    assert is_upstreams(replace(A, sigs=(Signature(UPSTREAM.name, bytes(64)),)), UPSTREAM_NAMES)

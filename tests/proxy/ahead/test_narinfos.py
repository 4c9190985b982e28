"""Narinfos that are looked up before a client asks for them: where it walks a closure, and no further."""

from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.ahead import narinfos
from nixcache_oci.proxy.ahead.narinfos import FIRST_UNREAD, MOST_AT_ONCE, MOST_REFERENCES, NarinfosAhead
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.lookup import UpstreamFinder
from tests.proxy.ahead.far_cache import FarCache, base_name_of, names, near, settle
from tests.support.front import let_run
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish


def add_chain(far: FarCache, length: int) -> None:
    """Have objects of which each refers to the next."""
    for number in range(length):
        far.add(f"path-{number}", references=[f"path-{number + 1}"] if number + 1 < length else [])


def parts(wanted: list[str]) -> list[str]:
    return sorted(map(hash_part_of, wanted))


async def test_who_follows_one_reference_gets_the_rest_of_the_closure(tmp_path: Path, far: FarCache) -> None:
    """Level after level at once, each narinfo asked for once, and what comes is right."""
    add_chain(far, 20)
    async with near(tmp_path, far) as client:
        await client.look(names(2))
        await far.until(lambda: len(far.asked_narinfos) == 20)
        for name in names(20):
            assert (await client.narinfo(name)).store_path.hash_part == hash_part_of(name)
        counters = await client.counters()
    assert sorted(far.asked_narinfos) == parts(names(20))
    assert counters["upstream_narinfos_fetched_ahead"] == counters["upstream_narinfos_ahead_used"] == 18
    assert counters["upstream_nars_fetched_ahead"] == 0


async def test_who_asks_for_one_narinfo_gets_no_other(tmp_path: Path, far: FarCache) -> None:
    """As path-info without --recursive does."""
    add_chain(far, 3)
    async with near(tmp_path, far) as client:
        await client.narinfo("path-0")
        await settle(client)
    assert far.asked_narinfos == [hash_part_of("path-0")]


async def test_who_follows_no_reference_gets_no_other(tmp_path: Path, far: FarCache) -> None:
    """As nix-env -qas does."""
    for name in names(50):
        far.add(name, references=names(3, f"below-{name}"))
        for below in names(3, f"below-{name}"):
            far.add(below)
    async with near(tmp_path, far) as client:
        await client.look(names(50))
        await settle(client)
    assert far.asked_narinfos == [hash_part_of(name) for name in names(50)]


async def test_head_counts_as_get(tmp_path: Path, far: FarCache) -> None:
    """nix copy --from asks by HEAD."""
    add_chain(far, 10)
    async with near(tmp_path, far) as client:
        for name in names(2):
            assert (await client.get(f"{hash_part_of(name)}.narinfo", "HEAD"))[0] == 200
        await far.until(lambda: len(far.asked_narinfos) == 10)


async def test_a_client_that_uses_little_gets_little(tmp_path: Path, far: FarCache) -> None:
    """A wide level is looked up as far as what is asked for justifies."""
    many = names(4 * FIRST_UNREAD, "many")
    far.add("path-0", references=many)
    for name in many:
        far.add(name)
    async with near(tmp_path, far) as client:
        await client.look(["path-0", many[0]])
        await far.until(lambda: len(far.asked_narinfos) == 2 + FIRST_UNREAD)
        await settle(client)
        assert len(far.asked_narinfos) == 2 + FIRST_UNREAD


async def test_what_this_cache_lists_is_not_looked_up(tmp_path: Path, far: FarCache) -> None:
    """An upstream's path may refer to one of ours, where it was built there."""
    await publish(Layout(tmp_path / "none"), [store_object("listed")])
    for name, references in {"path-0": ["path-1", "listed", "wanted"], "path-1": [], "wanted": []}.items():
        far.add(name, references=references)
    async with near(tmp_path, far) as client:
        assert (await client.get("_refresh", "POST"))[0] == 200
        await client.look(["path-0", "path-1"])
        await far.until(lambda: hash_part_of("wanted") in far.asked_narinfos)
        await settle(client)
    assert hash_part_of("listed") not in far.asked_narinfos


async def test_what_is_in_the_store_of_this_machine_is_not_looked_up(tmp_path: Path) -> None:
    """Where the client is on it: Nix does not ask for what is there. A link counts, wherever it leads."""
    store = tmp_path / "store"
    (store / base_name_of("valid")).mkdir(parents=True)
    (store / base_name_of("link")).symlink_to("nowhere")
    finder, counters = Finder(), Counters()
    for is_here, expected in ((True, ["wanted"]), (False, ["link", "valid", "wanted"])):
        ahead = NarinfosAhead(finder, lambda _: False, str(store), counters)
        below = tuple(map(base_name_of, ["path-1", "valid", "link", "wanted"]))
        ahead.given(store_object("path-0", references=below).narinfo, is_here=is_here)
        ahead.asked(hash_part_of("path-1"))
        await let_run()
        assert sorted(finder.asked) == parts(expected)
        finder.asked.clear()
        await ahead.close()


class Finder(UpstreamFinder):
    """Notes what is looked up, and finds nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def find_ahead(self, hash_part: HashPart) -> NarInfo | None:
        self.asked.append(hash_part)
        return None


async def test_references_without_end_are_bounded(
    tmp_path: Path, far: FarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile upstream may name 10,000; the narinfo itself is served as ever."""
    monkeypatch.setattr(narinfos, "FIRST_UNREAD", 10**6)
    far.add("path-0", references=["path-1", *names(10_000, "invented")])
    far.add("path-1")
    async with near(tmp_path, far) as client:
        assert len((await client.narinfo("path-0")).references) == 10_001
        await client.narinfo("path-1")
        await far.until(lambda: len(far.asked_narinfos) == 1 + MOST_REFERENCES)
        await settle(client)
        assert len(far.asked_narinfos) == 1 + MOST_REFERENCES


async def test_a_miss_is_answered_at_once(tmp_path: Path, far: FarCache) -> None:
    """And it is not looked up ahead again and again."""
    far.add("path-0", references=["path-1", "missing"])
    far.add("path-1")
    async with near(tmp_path, far) as client:
        await client.look(["path-0", "path-1"])
        await far.until(lambda: hash_part_of("missing") in far.asked_narinfos)
        await settle(client)
        assert (await client.get(f"{hash_part_of('missing')}.narinfo"))[0] == 404
    assert far.asked_narinfos.count(hash_part_of("missing")) == 1


async def test_an_upstream_that_refuses_is_not_asked_ahead(tmp_path: Path, far: FarCache) -> None:
    """But for what is under way; a client that asks meanwhile gets the upstream's own answer."""
    many = names(3 * MOST_AT_ONCE, "many")
    far.add("path-0", references=["path-1", *many])
    for name in ("path-1", *many):
        far.add(name)
    far.statuses[f"{hash_part_of(many[0])}.narinfo"] = 429
    async with near(tmp_path, far) as client:
        await client.look(names(2))
        await far.until(lambda: hash_part_of(many[0]) in far.asked_narinfos)
        await settle(client)
        assert len(far.asked_narinfos) <= 2 + MOST_AT_ONCE
        far.statuses.clear()
        await client.look(many)
        await settle(client)
    assert sorted(far.asked_narinfos) == parts(["path-0", "path-1", *many, many[0]])


async def test_switched_off_nothing_is_looked_up_ahead(tmp_path: Path, far: FarCache) -> None:
    """NIXCACHE_AHEAD=0."""
    add_chain(far, 10)
    async with near(tmp_path, far, ahead=False) as client:
        await client.look(names(2))
        await settle(client)
    assert sorted(far.asked_narinfos) == parts(names(2))

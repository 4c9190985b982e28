"""Which bytes of packs are asked of the repository, for narinfos that were served and NARs asked for."""

import asyncio
import hashlib
from dataclasses import replace

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.errors import DigestError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs import prefetcher, wanted
from nixcache_oci.proxy.packs.memory import Arrival, PackEntry
from tests.proxy.packs.pack_story import Bench, content_of, prefetch_of, settle
from tests.support.objects import store_object

SIZE = 10  # of a NAR
NARINFO = store_object("object").narinfo
GAP = 100


@pytest.fixture(autouse=True)
def small_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs have 1,000 bytes here, and none is found to be dense."""
    monkeypatch.setattr(wanted, "MAX_GAP_BYTES", GAP)
    monkeypatch.setattr(wanted, "_CHECKED_PARTS", 1000)


def serve(bench: Bench, pack: Digest, *starts: int, wrong_hash: bool = False) -> None:
    """Do what is done when the narinfos of NARs are served."""
    for start in starts:
        nar = bench.repository.blobs[pack][start : start + SIZE]
        file_hash = NixHash(bytes(32) if wrong_hash else hashlib.sha256(nar).digest())
        url = NarUrl(pack, start, SIZE)
        narinfo = replace(NARINFO, url=str(url), compression="none", file_hash=file_hash)
        bench.cache.prefetch_for(narinfo.render().encode())


def ask(bench: Bench, pack: Digest, start: int) -> asyncio.Task[bytes]:
    """Ask for a NAR."""
    return asyncio.create_task(bench.cache.cut_out(pack, start, start + SIZE))


def given(bench: Bench, pack: Digest, start: int) -> bytes:
    """Give a NAR that is in memory; nothing if it is not."""
    return bytes(bench.cache.cached(pack, start, start + SIZE) or b"")


def extents(bench: Bench, pack: Digest) -> list[tuple[int, int | None] | None]:
    """Tell what was asked of a pack, in order."""
    return [extent for asked, extent in bench.repository.extents if asked == pack]


async def fill(bench: Bench) -> Digest:
    """Have as much fetched ahead as may be while only narinfos are asked for; gives one pack of it."""
    bench.repository.gate.clear()
    packs = [bench.add(f"first {number}") for number in range(prefetcher._MOST_RANGES_BEFORE_NARS)]
    for pack in packs:
        serve(bench, pack, 0)
    await settle()
    assert [extents(bench, pack) for pack in packs] == [[(0, SIZE)]] * len(packs)
    return packs[0]


async def test_the_first_nars_are_fetched_at_once_and_alone(bench: Bench) -> None:
    """Nobody knows yet what else of their packs is wanted."""
    await fill(bench)
    pack = bench.add("pack")
    serve(bench, pack, 500)
    await settle()
    assert extents(bench, pack) == []


async def test_until_many_are_wanted_one_range_of_a_pack_is_fetched(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near a registry each narinfo would have a request of its own; of thousands, none waits for the last."""
    monkeypatch.setattr(prefetcher, "_MOST_WANTED_BEFORE_NARS", 3)
    pack = bench.add("pack")
    serve(bench, pack, 0)
    await settle()
    serve(bench, pack, 20, 40)
    await settle()
    assert extents(bench, pack) == [(0, 10)]
    serve(bench, pack, 60)
    await settle()
    assert extents(bench, pack) == [(0, 10), (20, 70)]


async def test_all_that_is_named_of_a_pack_is_remembered(bench: Bench) -> None:
    """Also while nothing is on its way; else the whole pack would have to come for what was forgotten."""
    pack = bench.add("pack")
    serve(bench, pack, 0)
    await settle()
    serve(bench, pack, *range(0, 1000, SIZE))
    await settle()
    assert await ask(bench, pack, 990) == content_of("pack")[990:]
    assert extents(bench, pack) == [(0, 10), (10, 1000)]


async def test_a_pack_that_is_wanted_closely_is_fetched_before_all_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranges have most of what is still unknown; of one that is wanted here and there they have not."""
    monkeypatch.setattr(wanted, "_CHECKED_PARTS", 8)
    await fill(bench)
    dense, sparse = bench.add("dense"), bench.add("sparse")
    serve(bench, sparse, 0, 20, 200, 220, 400, 420, 600, 800)
    serve(bench, dense, 0, 600, 100, 500, 200, 400, 300)
    await settle()
    assert extents(bench, dense) == []
    serve(bench, dense, 650)
    await settle()
    assert extents(bench, dense) == [(0, 660)]
    assert extents(bench, sparse) == []
    serve(bench, dense, 550)
    await settle()
    assert len(extents(bench, dense)) == 1


async def test_what_was_named_meanwhile_comes_in_few_ranges(bench: Bench) -> None:
    """The first NAR that is asked for says that the client knows what it wants."""
    first = await fill(bench)
    pack, other = bench.add("pack"), bench.add("other")
    serve(bench, pack, 500, 20, 540, 0, 900)
    serve(bench, other, 30)
    client = ask(bench, first, 0)
    await settle()
    assert extents(bench, pack) == [(0, 30), (500, 550), (900, 910)]
    assert extents(bench, other) == [(30, 40)]
    bench.repository.gate.set()
    assert await client == content_of("first 0")[:SIZE]
    await settle()
    for start in (500, 20, 540, 0, 900):
        assert given(bench, pack, start) == content_of("pack")[start : start + SIZE]
    assert bench.cache.used_bytes == 4 * SIZE + 30 + 50 + 10 + SIZE
    assert len(extents(bench, pack)) == 3


async def test_what_lies_in_a_gap_needs_no_request(bench: Bench) -> None:
    """It came with its neighbours; its own hash is asked for before it is given."""
    first = await fill(bench)
    pack = bench.add("pack")
    serve(bench, pack, 0, 80)
    client = ask(bench, first, 0)
    await settle()
    bench.repository.gate.set()
    await client
    await settle()
    assert given(bench, pack, 40) == b"", "nobody said what it is"
    serve(bench, pack, 40)
    assert given(bench, pack, 40) == content_of("pack")[40 : 40 + SIZE]
    assert extents(bench, pack) == [(0, 90)]


async def test_a_client_comes_before_what_is_fetched_ahead(bench: Bench) -> None:
    """Its range begins at once, however much is on its way; the others of the pack wait for their turn."""
    first = await fill(bench)
    bench.cache._memory.budget.most_in_transit = 4
    pack = bench.add("pack")
    serve(bench, pack, 500, 0, 40)
    clients = [ask(bench, first, 0), ask(bench, pack, 40)]
    await settle()
    assert extents(bench, pack) == [(0, 50)]
    bench.repository.gate.set()
    await asyncio.gather(*clients)
    await settle()
    assert extents(bench, pack) == [(0, 50), (500, 510)]


async def test_few_ranges_are_fetched_for_clients_at_a_time(bench: Bench) -> None:
    """Each takes connections; the next one has its turn when one ends."""
    bench.cache._memory.budget.most_in_transit = 0
    bench.cache._most_on_demand = 2
    bench.repository.gate.clear()
    packs = [bench.add(f"pack {number}") for number in range(5)]
    for pack in packs:
        serve(bench, pack, 0)
    clients = [ask(bench, pack, 0) for pack in packs]
    await settle()
    assert bench.repository.opened == packs[:2]
    bench.repository.gate.set()
    assert await asyncio.gather(*clients) == [content_of(f"pack {number}")[:SIZE] for number in range(5)]
    assert sorted(bench.repository.opened) == sorted(packs)


async def test_a_pack_that_is_wanted_bit_by_bit_comes_whole(bench: Bench) -> None:
    """A client that asks for one narinfo and its NAR after the other shall not wait for each of them."""
    pack = bench.add("pack")
    for start in range(0, 1000, SIZE):
        serve(bench, pack, start)
        assert await ask(bench, pack, start) == content_of("pack")[start : start + SIZE]
    assert extents(bench, pack) == [(0, 10), (10, 20), (20, 30), None]
    await settle()
    assert bench.cache.used_bytes == 1000, "its parts are not kept beside it"


@pytest.mark.parametrize("is_hash_wrong", [True, False])
async def test_a_part_that_does_not_match_has_the_whole_pack_fetched(
    bench: Bench, *, is_hash_wrong: bool
) -> None:
    """Nothing is given that matches neither; the pack's own digest decides."""
    pack = bench.add("pack")
    serve(bench, pack, 0, wrong_hash=is_hash_wrong)
    if is_hash_wrong:
        assert await ask(bench, pack, 0) == content_of("pack")[:SIZE]
    else:
        bench.repository.blobs[pack] = content_of("wrong")
        with pytest.raises(DigestError):
            await ask(bench, pack, 0)
        assert pack in bench.quarantine
    assert extents(bench, pack) == [(0, SIZE), None]


async def test_a_range_that_failed_costs_the_client_an_attempt_of_its_own(bench: Bench) -> None:
    """And nothing more is fetched ahead of that pack for a while."""
    pack = Digest.of(content_of("late"))
    bench.cache.prefetch(
        prefetch_of(pack, 0, SIZE, NixHash(hashlib.sha256(content_of("late")[:SIZE]).digest()))
    )
    await settle()
    bench.add("late")
    serve(bench, pack, 500)
    await settle()
    assert extents(bench, pack) == [(0, SIZE)]
    assert await ask(bench, pack, 0) == content_of("late")[:SIZE]
    assert extents(bench, pack) == [(0, SIZE), None]


async def test_a_part_that_had_to_go_is_fetched_again_alone(bench: Bench) -> None:
    """Its hash is remembered, so it takes no whole pack."""
    pack = bench.add("pack")
    serve(bench, pack, 0)
    await ask(bench, pack, 0)
    await bench.sweep()
    assert bench.cache.used_bytes == 0
    assert await ask(bench, pack, 0) == content_of("pack")[:SIZE]
    assert extents(bench, pack) == [(0, SIZE)] * 2


async def test_a_pack_that_an_upstream_has_as_a_nar(bench: Bench) -> None:
    """What was fetched of an upstream arrives as a whole, and is as good: its digest is the same."""
    pack = bench.add("pack")
    serve(bench, pack, 500)
    await settle()
    bench.repository.extents.clear()

    async def download() -> bytearray:
        return bytearray(content_of("pack"))

    async def ignore(_size: int) -> None:
        """There is room."""

    entry = PackEntry(
        pack,
        0,
        None,
        is_pack=False,
        batch=0,
        download=asyncio.create_task(download()),
        arrival=Arrival(ignore),
        used_at=0.0,
    )
    bench.cache._memory.add(entry, len(content_of("pack")))
    serve(bench, pack, 0)
    assert await asyncio.wait_for(ask(bench, pack, 0), 10) == content_of("pack")[:SIZE]
    assert extents(bench, pack) == []

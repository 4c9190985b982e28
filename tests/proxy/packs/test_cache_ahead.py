"""Packs that are fetched before anybody asks for them, and what that takes from those who ask."""

import asyncio

from nixcache_oci.oci.digest import Digest
from tests.proxy.packs.pack_story import (
    AHEAD,
    IN_FLIGHT,
    Bench,
    content_of,
    displaced,
    settle,
)


async def test_fetched_ahead_is_there_when_asked_for(bench: Bench) -> None:
    """The narinfo began the download; the NAR request finds it done."""
    pack = bench.add("pack")
    bench.prefetch(pack)
    bench.prefetch(pack)
    await settle()
    assert bytes(await bench.get(pack)) == content_of("pack")
    assert bench.repository.opened == [pack]
    assert bench.counters.ranges_fetched_ahead == 1


async def test_a_crawl_does_not_download_the_cache(bench: Bench) -> None:
    """While packs that were fetched ahead stay unread, no more are; reading one lets two more come."""
    packs = [bench.add(f"pack {number}") for number in range(20)]
    for pack in packs:
        bench.prefetch(pack)
        await settle()
    assert bench.repository.opened == packs[:AHEAD]
    await bench.get(packs[0])
    await settle()
    assert bench.repository.opened == packs[: AHEAD + 2]


async def test_a_closure_of_many_packs_is_fetched_ahead_to_its_end(bench: Bench) -> None:
    """All narinfos are asked for before the first NAR: what there was no room for then has its turn later."""
    packs = [bench.add(f"pack {number}") for number in range(10)]
    for pack in packs:
        bench.prefetch(pack)
    for pack in packs:
        await settle()
        assert pack in bench.repository.opened
        await bench.get(pack)
        bench.now += 5  # so slowly that those which were read make way
    assert bench.repository.opened == packs


async def test_what_nobody_came_for_in_time_is_not_fetched_any_more(bench: Bench) -> None:
    """A crawl leaves names behind; the next client has other wishes."""
    packs = [bench.add(f"pack {number}") for number in range(AHEAD + 1)]
    for pack in packs:
        bench.prefetch(pack)
    await settle()
    await bench.sweep()
    assert bench.cache.used_bytes == 0
    await bench.get(packs[0])
    await settle()
    assert bench.repository.opened == [*packs[:-1], packs[0]]


async def test_a_demand_always_finds_a_place_beside_what_was_fetched_ahead(bench: Bench) -> None:
    """Guesses never make a client wait for room."""
    bench.repository.gate.clear()
    for number in range(20):
        bench.prefetch(bench.add(f"pack {number}"))
    wanted = [bench.add("wanted"), bench.add("wanted, too")]
    clients = []
    for pack in wanted:
        clients.append(asyncio.create_task(bench.get(pack)))
        await settle()
        assert pack in bench.repository.opened
    bench.repository.gate.set()
    assert [Digest.of(content) for content in await asyncio.gather(*clients)] == wanted


async def test_what_nobody_reads_is_given_up(bench: Bench) -> None:
    """A dry run must not switch fetching ahead off for good."""
    for number in range(IN_FLIGHT):
        bench.prefetch(bench.add(f"pack {number}"))
    await settle()
    await bench.sweep()
    later = bench.add("later")
    bench.prefetch(later)
    await settle()
    assert bench.repository.opened[-1] == later


async def test_a_failure_ahead_is_quiet(bench: Bench) -> None:
    """Nobody asked yet: it is logged, and no unretrieved exception is left behind."""
    bench.prefetch(Digest.of(b"nowhere"))
    await settle()
    assert bench.cache.used_bytes == 0


async def test_what_failed_is_not_fetched_ahead_again_and_again(bench: Bench) -> None:
    """Hundreds of narinfos lie in one pack: a registry in trouble must not be asked for each of them."""
    pack = Digest.of(content_of("late"))
    for _ in range(100):
        bench.prefetch(pack)
        await settle()
    assert bench.repository.opened == [pack]
    # Whoever wants it now is not told of the past.
    bench.add("late")
    assert bytes(await bench.get(pack)) == content_of("late")


async def test_what_failed_is_fetched_ahead_later(bench: Bench) -> None:
    """Trouble passes."""
    pack = Digest.of(content_of("late"))
    bench.prefetch(pack)
    await settle()
    bench.add("late")
    bench.now += 60
    bench.prefetch(pack)
    await settle()
    assert bench.repository.opened == [pack, pack]
    assert bench.cached(pack) == memoryview(content_of("late"))


async def test_nothing_is_dropped_for_a_guess_that_does_not_fit_all_the_same(bench: Bench) -> None:
    """It would cost somebody a pack that was read, and gain nothing."""
    read, ahead = bench.repository.add(b"read"), bench.repository.add(b"ahead")
    await bench.get(read)
    bench.prefetch(ahead)
    await settle()
    bench.repository.gate.clear()
    wanted = [bench.add(f"wanted {number}") for number in range(IN_FLIGHT - 1)]
    clients = [asyncio.create_task(bench.get(pack)) for pack in wanted]
    await settle()
    bench.now += 5
    bench.prefetch(bench.add("one more"))
    await settle()
    assert bench.repository.opened == [read, ahead, *wanted]
    assert bytes(await bench.get(read)) == b"read"
    assert bench.repository.opened == [read, ahead, *wanted]
    bench.repository.gate.set()
    await asyncio.gather(*clients)


async def test_the_size_of_one_makes_room_for_who_waits(bench: Bench) -> None:
    """Another client, whose pack had no room beside packs of unknown size."""
    bench.repository.gate.clear()
    packs = [bench.repository.add(f"pack {number}".encode()) for number in range(4 * IN_FLIGHT)]
    clients = [asyncio.create_task(bench.get(pack)) for pack in packs]
    await settle()
    assert bench.repository.opened == packs
    bench.repository.gate.set()
    await asyncio.gather(*clients)


async def test_a_demand_takes_the_room_of_what_was_read_before_that_of_guesses(bench: Bench) -> None:
    """What was fetched ahead is about to be asked for."""
    ahead = bench.add("ahead")
    bench.prefetch(ahead)
    await settle()
    for number in range(2 * IN_FLIGHT):
        await bench.get(bench.add(f"pack {number}"))
    bench.repository.opened.clear()
    await bench.get(ahead)
    assert bench.repository.opened == []


async def test_what_had_to_go_is_no_guess_any_more(bench: Bench) -> None:
    """Else a crawl would have it come again and again."""
    pack = await displaced(bench, "pack")
    bench.prefetch(pack)
    await settle()
    assert bench.repository.opened == []


async def test_what_went_wrong_meanwhile_is_no_guess_any_more(bench: Bench) -> None:
    """It was wanted before; now it is known to be wrong."""
    packs = [bench.add(f"pack {number}") for number in range(AHEAD + 2)]
    for pack in packs:
        bench.prefetch(pack)
    await settle()
    bench.quarantine.add(packs[-2])
    await bench.get(packs[0])
    await settle()
    assert bench.repository.opened == [*packs[:-2], packs[-1]]

"""Packs in memory: bounded, and downloaded once for all."""

import asyncio

import pytest

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.errors import DigestError, FormatError, NotFoundError
from nixcache_oci.oci.digest import Digest
from tests.proxy.packs.pack_story import AHEAD, IN_FLIGHT, PACK_BYTES, Bench, content_of, displaced, settle


async def test_one_download_serves_all(bench: Bench) -> None:
    """Sixteen clients that want the same pack at once cost one request; and later ones cost none."""
    pack = bench.add("pack")
    bench.repository.gate.clear()
    clients = [asyncio.create_task(bench.get(pack)) for _ in range(16)]
    await settle()
    bench.repository.gate.set()
    assert [bytes(content) for content in await asyncio.gather(*clients)] == [content_of("pack")] * 16
    assert bytes(await bench.get(pack)) == content_of("pack")
    assert bench.repository.opened == [pack]


async def test_a_client_that_hangs_up_does_not_stop_the_others(bench: Bench) -> None:
    """Not even the one whose request began the download."""
    pack = bench.add("pack")
    bench.repository.gate.clear()
    first, second = (asyncio.create_task(bench.get(pack)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    bench.repository.gate.set()
    assert bytes(await second) == content_of("pack")
    assert bench.repository.opened == [pack]


async def test_packs_on_their_way_count(bench: Bench) -> None:
    """Any number of clients that want different packs get them, a bounded number at a time."""
    packs = [bench.add(f"pack {number}") for number in range(3 * IN_FLIGHT)]
    bench.repository.gate.clear()
    clients = [asyncio.create_task(bench.get(pack)) for pack in packs]
    await settle()
    assert bench.repository.running == IN_FLIGHT
    assert bench.cache.used_bytes <= IN_FLIGHT * PACK_BYTES
    bench.repository.gate.set()
    contents = await asyncio.wait_for(asyncio.gather(*clients), 10)
    assert [Digest.of(content) for content in contents] == packs


async def test_a_waiter_that_gives_up_takes_nobody_elses_turn(bench: Bench) -> None:
    """Room that is freed goes to one who still waits."""
    packs = [bench.add(f"pack {number}") for number in range(IN_FLIGHT + 2)]
    bench.repository.gate.clear()
    clients = [asyncio.create_task(bench.get(pack)) for pack in packs]
    await settle()
    clients[IN_FLIGHT].cancel()
    await settle()
    bench.repository.gate.set()
    assert await asyncio.wait_for(clients[-1], 10)


@pytest.mark.parametrize("cached", [True, False])
async def test_what_was_used_longest_ago_goes_first(bench: Bench, *, cached: bool) -> None:
    """Memory is bounded, however many packs are asked for."""
    packs = [bench.add(f"pack {number}") for number in range(IN_FLIGHT)]
    for pack in packs:
        await bench.get(pack)
    assert bench.cached(packs[0]) if cached else await bench.get(packs[0])
    await bench.get(bench.add("one more"))
    assert bench.cache.used_bytes <= IN_FLIGHT * PACK_BYTES
    bench.repository.opened.clear()
    await bench.get(packs[0])
    assert bench.repository.opened == []
    await bench.get(packs[1])
    assert bench.repository.opened == [packs[1]]


async def test_a_wrong_pack_is_refused_and_put_into_quarantine(bench: Bench) -> None:
    """No slice of it is ever served."""
    pack = Digest.of(b"right")
    bench.repository.blobs[pack] = b"wrong"
    with pytest.raises(DigestError):
        await bench.get(pack)
    assert pack in bench.quarantine
    assert bench.cache.used_bytes == 0


async def test_a_pack_over_the_limit_is_refused_before_it_is_read(bench: Bench) -> None:
    """A hostile table may point at a blob of any size."""
    pack = bench.repository.add(bytes(PACK_BYTES + 1))
    bench.repository.gate.clear()
    with pytest.raises(FormatError, match="limit"):
        await asyncio.wait_for(bench.get(pack), 10)


async def test_a_failed_download_is_tried_again_when_asked(bench: Bench) -> None:
    """One failure must not stay for ever."""
    pack = Digest.of(content_of("late"))
    with pytest.raises(NotFoundError):
        await bench.get(pack)
    bench.add("late")
    assert bytes(await bench.get(pack)) == content_of("late")


async def test_at_hand_is_what_nobody_has_to_wait_for(bench: Bench) -> None:
    """Not a pack on its way, and not one that is wrong; and nothing is fetched for it."""
    pack, wrong = bench.add("pack"), Digest.of(b"right")
    bench.repository.blobs[wrong] = b"wrong"
    assert bench.cached(pack) is None
    assert bench.repository.opened == []
    bench.repository.gate.clear()
    bench.prefetch(pack)
    bench.prefetch(wrong)
    await settle()
    assert (bench.cached(pack), bench.cached(wrong)) == (None, None)
    bench.repository.gate.set()
    await settle()
    assert (bench.cached(pack), bench.cached(wrong)) == (memoryview(content_of("pack")), None)


async def test_a_download_that_ended_before_it_began_leaves_nothing_at_hand(bench: Bench) -> None:
    """As where the proxy stops at once."""
    pack = bench.add("pack")
    bench.prefetch(pack)
    await bench.cache.close()
    assert bench.cached(pack) is None


async def test_at_hand_counts_as_read(bench: Bench) -> None:
    """It makes way for the next pack that is wanted."""
    packs = [bench.add(f"pack {number}") for number in range(AHEAD + 1)]
    for pack in packs:
        bench.prefetch(pack)
    await settle()
    assert bench.repository.opened == packs[:-1]
    assert bench.cached(packs[0]) == memoryview(content_of("pack 0"))
    await settle()
    assert bench.repository.opened == packs


async def test_all_waiters_may_give_up(bench: Bench) -> None:
    """Cancelled in every state, waiting for room or for a download: the cache works on."""
    packs = [bench.add(f"pack {number}") for number in range(2 * IN_FLIGHT)]
    bench.repository.gate.clear()
    clients = [asyncio.create_task(bench.get(pack)) for pack in packs]
    await settle()
    for client in clients:
        client.cancel()
    await settle()
    assert all(client.cancelled() for client in clients)
    bench.repository.gate.set()
    await settle()
    assert bench.repository.opened == packs[:IN_FLIGHT], "the others had not begun, and nobody wants them"
    assert bytes(await asyncio.wait_for(bench.get(packs[-1]), 10)) == content_of(f"pack {len(packs) - 1}")


async def test_the_same_pack_wanted_by_many_while_there_is_no_room(bench: Bench) -> None:
    """They wait together, and share the one download that begins when there is room."""
    bench.repository.gate.clear()
    first = [asyncio.create_task(bench.get(bench.add(f"first {number}"))) for number in range(IN_FLIGHT)]
    await settle()
    pack = bench.add("wanted by many")
    clients = [asyncio.create_task(bench.get(pack)) for _ in range(16)]
    await settle()
    bench.repository.gate.set()
    await asyncio.wait_for(asyncio.gather(*first, *clients), 10)
    assert bench.repository.opened.count(pack) == 1


async def test_closing_ends_downloads(bench: Bench) -> None:
    """Also those that nobody waits for; no task is left behind."""
    bench.repository.gate.clear()
    bench.prefetch(bench.add("ahead"))
    client = asyncio.create_task(bench.get(bench.add("wanted")))
    await settle()
    await bench.cache.close()
    await asyncio.wait([client])
    assert client.cancelled()
    assert bench.repository.running == 0
    assert len(asyncio.all_tasks()) == 1


async def test_packs_that_are_wanted_by_turns_come_whole_only_once(bench: Bench) -> None:
    """A closure that lies in more packs than have room, in whatever order it is asked for."""
    packs = [bench.add(f"pack {number}") for number in range(3 * IN_FLIGHT)]
    for start in range(0, PACK_BYTES, 100):
        for number, pack in enumerate(packs):
            nar = await bench.cache.cut_out(pack, start, start + 100)
            assert nar == content_of(f"pack {number}")[start : start + 100]
    wholes = [pack for pack, extent in bench.repository.extents if extent is None]
    assert wholes == packs
    assert bench.cache.used_bytes <= IN_FLIGHT * PACK_BYTES
    # The next closure finds them whole again.
    bench.now += 1000
    bench.repository.extents.clear()
    await bench.cache.cut_out(packs[0], 0, 10)
    assert bench.repository.extents == [(packs[0], None)]


async def test_a_part_that_is_wrong_is_refused(bench: Bench) -> None:
    """It is checked by what the whole pack was; and the pack is in quarantine then."""
    pack = await displaced(bench, "pack")
    bench.repository.blobs[pack] = content_of("wrong")
    with pytest.raises(DigestError):
        await bench.cache.cut_out(pack, 0, 10)
    assert pack in bench.quarantine


@pytest.mark.parametrize("is_displaced", [True, False])
async def test_a_part_that_does_not_lie_in_the_pack(bench: Bench, *, is_displaced: bool) -> None:
    """Whether the pack is here or was."""
    pack = await displaced(bench, "pack") if is_displaced else bench.add("pack")
    with pytest.raises(FormatError, match="are outside its 1000"):
        await bench.cache.cut_out(pack, 990, 1001)


async def test_memory_is_given_back(bench: Bench) -> None:
    """When a closure was read and nobody has come since; what is on its way stays."""
    await bench.get(bench.add("read"))
    bench.prefetch(bench.add("unread"))
    await settle()
    bench.repository.gate.clear()
    client = asyncio.create_task(bench.get(bench.add("on its way")))
    await settle()
    await bench.sweep()
    assert bench.cache.used_bytes == PACK_BYTES
    bench.repository.gate.set()
    assert await client == content_of("on its way")
    await bench.sweep()
    assert bench.cache.used_bytes == 0
    assert bench.cache._sweeping is None


async def test_only_so_many_packs_are_remembered(bench: Bench) -> None:
    """Of one that was forgotten, the whole comes again."""
    bench.cache._sums = BoundedCache(IN_FLIGHT)
    pack = await displaced(bench, "pack")
    await bench.get(bench.add("one more"))
    bench.repository.extents.clear()
    await bench.cache.cut_out(pack, 0, 10)
    assert bench.repository.extents == [(pack, None)]

"""Packs in memory: bounded, downloaded once for all, some before anybody asks."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.errors import DigestError, FormatError, NotFoundError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.packs import cache, memory
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.prefetch import Prefetch
from nixcache_oci.proxy.verified import Quarantine
from tests.support.process import until
from tests.support.slow_repository import SlowRepository

PACK_BYTES = 1000  # the largest one, here
IN_FLIGHT, AHEAD = 6, 3  # so many of those
AT_ONCE = 32


class Bench:
    """A pack cache over a slow repository, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.repository = SlowRepository()
        self.quarantine = Quarantine(lambda: self.now)
        self.counters = Counters()
        self.cache = PackCache(
            self.repository,
            self.quarantine,
            self.counters,
            IN_FLIGHT * PACK_BYTES,
            AT_ONCE,
            lambda: self.now,
        )

    def add(self, name: str) -> Digest:
        """Put a pack of the largest size in."""
        return self.repository.add(content_of(name))

    def prefetch(self, pack: Digest) -> None:
        """Have a pack fetched ahead."""
        self.cache.prefetch(Prefetch(pack, is_pack=True))

    async def get(self, pack: Digest) -> bytes:
        """Ask for all of a pack."""
        return await self.cache.cut_out(pack, 0, len(self.repository.blobs.get(pack, b"?")))

    def cached(self, pack: Digest) -> memoryview | None:
        """Ask for all of a pack, if it is here."""
        return self.cache.cached(pack, 0, PACK_BYTES)

    async def sweep(self) -> None:
        """Let so much time pass that all is forgotten that nobody used."""
        self.now += 200
        swept = self.cache._sweeping
        await until(lambda: self.cache._sweeping is not swept)


def content_of(name: str) -> bytes:
    return name.encode().ljust(PACK_BYTES)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    for module in (cache, memory):
        monkeypatch.setattr(module, "MAX_PACK_BYTES", PACK_BYTES)
    monkeypatch.setattr(memory, "_ENTRY_BYTES", 0)
    monkeypatch.setattr(cache, "_LEAST_GUESS_BYTES", 10)
    monkeypatch.setattr(cache, "_SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(memory, "_PREFETCH_SHARE", IN_FLIGHT // AHEAD)
    # One thread, so that whoever waits for a job of it has waited for all before.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    bench = Bench()
    yield bench
    bench.repository.gate.set()
    await bench.cache.close()


async def settle() -> None:
    """Let everything run that can, on threads too."""
    for _ in range(3):
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.to_thread(int)


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


async def test_fetched_ahead_is_there_when_asked_for(bench: Bench) -> None:
    """The narinfo began the download; the NAR request finds it done."""
    pack = bench.add("pack")
    bench.prefetch(pack)
    bench.prefetch(pack)
    await settle()
    assert bytes(await bench.get(pack)) == content_of("pack")
    assert bench.repository.opened == [pack]
    assert bench.counters.packs_fetched_ahead == 1


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
    assert bench.counters.packs_fetched == 1


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


async def test_small_packs_are_fetched_ahead_many_at_a_time(bench: Bench) -> None:
    """What a pack counts for is known as soon as its download has begun, and not only when it is here."""
    bench.repository.gate.clear()
    packs = [bench.repository.add(f"pack {number}".encode()) for number in range(30)]
    for pack in packs:
        bench.prefetch(pack)
    assert bench.cache.used_bytes == AHEAD * PACK_BYTES
    await settle()
    assert bench.repository.opened == packs
    assert bench.cache.used_bytes == sum(len(f"pack {number}") for number in range(30))


async def test_many_small_packs_begin_together(bench: Bench) -> None:
    """One tells what the next ones may be like: 300 publishes of one path each take no 75 round trips."""
    bench.cache._guess_bytes = 10
    bench.repository.gate.clear()
    packs = [bench.repository.add(f"pack {number}".encode()) for number in range(AT_ONCE + 1)]
    for pack in packs:
        bench.prefetch(pack)
    assert bench.cache.used_bytes == AT_ONCE * 10
    bench.repository.gate.set()
    await settle()
    assert bench.repository.opened == packs


async def test_packs_that_are_larger_than_the_last_one_stay_within_the_bound(bench: Bench) -> None:
    """None of a pack is read before there is room for all of it; what finds none has its turn later."""
    bench.cache._guess_bytes = 10
    bench.repository.gate.clear()
    packs = [bench.add(f"pack {number}") for number in range(AHEAD + 2)]
    for pack in packs:
        bench.prefetch(pack)
    await settle()
    assert bench.repository.opened == packs
    assert bench.repository.running == AHEAD
    assert bench.cache.used_bytes == AHEAD * PACK_BYTES
    bench.repository.gate.set()
    await bench.get(packs[0])
    await settle()
    assert len(bench.repository.opened) == len(packs) + 2
    assert all(bench.cached(pack) for pack in packs)
    assert bench.cache.used_bytes == (AHEAD + 2) * PACK_BYTES


async def test_who_waits_for_a_pack_that_is_larger_than_the_last_one(bench: Bench) -> None:
    """It makes room, as for any other; and if there is none yet, the client waits for it."""
    bench.repository.gate.clear()
    full = [asyncio.create_task(bench.get(bench.add(f"full {number}"))) for number in range(IN_FLIGHT - 2)]
    await settle()
    bench.cache._guess_bytes = 10
    larger = [bench.add(f"larger {number}") for number in range(2)]
    for pack in larger:
        bench.prefetch(pack)
    clients = [asyncio.create_task(bench.get(pack)) for pack in larger]
    more = asyncio.create_task(bench.get(bench.add("one more")))
    await settle()
    assert bench.cache.used_bytes <= IN_FLIGHT * PACK_BYTES
    bench.repository.gate.set()
    contents = await asyncio.wait_for(asyncio.gather(*full, *clients, more), 10)
    assert bytes(contents[IN_FLIGHT - 2]) == content_of("larger 0")
    assert bench.cache.used_bytes <= IN_FLIGHT * PACK_BYTES


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


async def displaced(bench: Bench, name: str) -> Digest:
    """Have a pack fetched, and then so many others that it had to go."""
    pack = bench.add(name)
    await bench.get(pack)
    for number in range(IN_FLIGHT):
        await bench.get(bench.add(f"other {number}"))
    bench.repository.opened.clear()
    return pack


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


async def test_what_had_to_go_is_no_guess_any_more(bench: Bench) -> None:
    """Else a crawl would have it come again and again."""
    pack = await displaced(bench, "pack")
    bench.prefetch(pack)
    await settle()
    assert bench.repository.opened == []


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


async def test_only_so_many_packs_are_remembered(bench: Bench) -> None:
    """Of one that was forgotten, the whole comes again."""
    bench.cache._sums = BoundedCache(IN_FLIGHT)
    pack = await displaced(bench, "pack")
    await bench.get(bench.add("one more"))
    bench.repository.extents.clear()
    await bench.cache.cut_out(pack, 0, 10)
    assert bench.repository.extents == [(pack, None)]

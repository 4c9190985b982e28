"""What has come of a pack, and who waits for which part of it."""

import asyncio

import pytest

from nixcache_oci.proxy.packs.memory import Arrival


@pytest.fixture
async def arrival() -> Arrival:
    arrival = Arrival(_ignore)
    await arrival.begin(bytearray(b"0123456789"))
    return arrival


async def _ignore(_: int) -> None:
    pass


async def test_the_size_is_told_when_it_is_known() -> None:
    """Before any byte."""
    told = []

    async def when_open(size: int) -> None:
        told.append(size)

    await Arrival(when_open).begin(bytearray(10))
    assert told == [10]


async def test_only_what_is_here_can_be_seen(arrival: Arrival) -> None:
    """Not the place that is kept for the rest, and nothing before the size is known."""
    assert Arrival(_ignore).view(0, 1) is None
    assert arrival.view(0, 1) is None
    arrival.advance(4)
    views = [arrival.view(0, 4), arrival.view(1, 3)]
    assert views == [memoryview(b"0123"), memoryview(b"12")]
    assert arrival.view(3, 5) is None


async def test_each_waits_for_its_own_end(arrival: Arrival) -> None:
    """Nobody is woken too soon, or has to wait for more; who gave up is in nobody's way."""
    waiting = {end: asyncio.create_task(arrival.reach(end)) for end in (7, 3, 10, 5)}
    given_up = asyncio.create_task(arrival.reach(3))
    await asyncio.sleep(0)
    given_up.cancel()
    for arrived in (2, 3, 6, 10):
        arrival.advance(arrived)
        for _ in range(3):
            await asyncio.sleep(0)
        assert {end for end, task in waiting.items() if task.done()} == {e for e in waiting if e <= arrived}
    assert arrival._waiting == []
    await asyncio.wait_for(arrival.reach(9), 10)


async def test_the_end_wakes_all(arrival: Arrival) -> None:
    """Those who wait, and those who come later."""
    waiting = [asyncio.create_task(arrival.reach(end)) for end in (5, 20)]
    await asyncio.sleep(0)
    arrival.end()
    await asyncio.wait_for(asyncio.gather(*waiting, arrival.reach(30)), 10)
    assert arrival.view(0, 1) is None

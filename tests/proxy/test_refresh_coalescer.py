"""Refreshes that clients ask for: shared, paced, and never one that began too early."""

import asyncio

import pytest

from nixcache_oci.errors import RegistryError
from nixcache_oci.proxy.refresh_coalescer import MOST_IN_A_ROW, WINDOW_SECONDS, RefreshCoalescer
from tests.support.front import let_run


class Looks:
    """What a refresh asks of the index: a look, which ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def refresh(self, *, thoroughly: bool) -> None:
        assert thoroughly
        self.begun.append(asyncio.get_running_loop().time())
        await self.gate.wait()
        if self.error is not None:
            raise self.error


def make() -> tuple[Looks, RefreshCoalescer]:
    looks = Looks()
    return looks, RefreshCoalescer(looks)


async def test_who_asks_during_a_look_shares_the_next() -> None:
    """The one under way may have missed what was published meanwhile; who hung up stops nothing."""
    looks, refreshes = make()
    first = asyncio.create_task(refreshes.refresh())
    await let_run()
    crowd = [asyncio.create_task(refreshes.refresh()) for _ in range(100)]
    await let_run()
    assert len(looks.begun) == 1
    crowd[0].cancel()
    looks.gate.set()
    await first
    await asyncio.gather(*crowd[1:])
    assert len(looks.begun) == 2


async def test_all_who_wait_have_the_same_outcome() -> None:
    """A failure as well, and it is not lost on anybody that all of them had gone."""
    looks, refreshes = make()
    looks.error = RegistryError("down")
    crowd = [asyncio.create_task(refreshes.refresh()) for _ in range(3)]
    await let_run()
    crowd[0].cancel()
    looks.gate.set()
    for one in crowd[1:]:
        with pytest.raises(RegistryError):
            await one
    looks.error = None
    await refreshes.refresh()
    assert len(looks.begun) == 2


async def test_looks_in_a_row_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks again and again does not have the registry asked as often."""
    monkeypatch.setattr("nixcache_oci.proxy.refresh_coalescer.WINDOW_SECONDS", WINDOW_SECONDS / 50)
    looks, refreshes = make()
    looks.gate.set()
    for _ in range(2 * MOST_IN_A_ROW + 1):
        await refreshes.refresh()
    for before, after in zip(looks.begun, looks.begun[MOST_IN_A_ROW:], strict=False):
        assert after - before > WINDOW_SECONDS / 50 - 0.01


async def test_it_ends_with_the_proxy() -> None:
    """Neither the look that is under way nor the one behind it keeps the proxy from stopping."""
    looks, refreshes = make()
    waiting = [asyncio.create_task(refreshes.refresh())]
    await let_run()
    waiting.append(asyncio.create_task(refreshes.refresh()))
    await let_run()
    await refreshes.close()
    for one in waiting:
        with pytest.raises(asyncio.CancelledError):
            await one
    assert len(looks.begun) == 1

"""The bench of the tests of the pack cache."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixcache_oci.proxy.packs import cache, memory
from tests.proxy.packs.pack_story import AHEAD, IN_FLIGHT, PACK_BYTES, Bench


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    for module in (cache, memory):
        monkeypatch.setattr(module, "MAX_PACK_BYTES", PACK_BYTES)
    monkeypatch.setattr(memory, "_ENTRY_BYTES", 0)
    monkeypatch.setattr(cache, "_SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(memory, "_PREFETCH_SHARE", IN_FLIGHT // AHEAD)
    # One thread, so that whoever waits for a job of it has waited for all before.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    bench = Bench()
    yield bench
    bench.repository.gate.set()
    await bench.cache.close()

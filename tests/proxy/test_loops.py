"""Proxies that are each other's upstream, or their own: what nobody has is missing at once."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.server import serving
from tests.support.front import proxy_config
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish

Start = Callable[..., AbstractAsyncContextManager[None]]


def free_port() -> int:
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        return int(once.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @asynccontextmanager
    async def start(port: int, *upstreams: int, holds: str = "") -> AsyncIterator[None]:
        layout = Layout(tmp_path / f"cache-{port}")
        if holds:
            await publish(layout, [store_object(holds)])
        urls = tuple(f"http://127.0.0.1:{one}" for one in upstreams)
        config = proxy_config(tmp_path / f"index-{port}", port=port, upstreams=urls)
        async with serving(config, [ConfiguredCache(layout)]):
            yield

    return start


async def status(port: int, seed: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/{hash_part_of(seed)}.narinfo") as answer,
    ):
        return answer.status


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_ring_of_proxies_answers_at_once(start: Start, count: int) -> None:
    """Each finds what another one has, and what nobody has is no wait for a time-out."""
    ports = [free_port() for _ in range(count)]
    async with AsyncExitStack() as stack:
        for number, port in enumerate(ports):
            after = ports[(number + 1) % count]
            await stack.enter_async_context(start(port, after, holds=f"object-{number}"))
        async with aiohttp.ClientSession() as session:
            for port in ports:  # all is warm: connections, and the first look at the cache
                await status(port, "warm")
            async with asyncio.timeout(4):  # an upstream has 5 s and more to answer
                assert [await status(port, "nowhere") for port in ports] == [404] * count
            for port in ports:
                found = [await status(port, f"object-{number}") for number in range(count)]
                assert found == [200] * count
            async with session.get(f"http://127.0.0.1:{ports[0]}/_status") as answer:
                assert [one["failures"] for one in (await answer.json())["upstreams"]] == [0]

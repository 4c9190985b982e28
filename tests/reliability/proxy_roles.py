"""Cells of the proxy: the one that serves refreshes its index, or fetches a NAR, while the fault strikes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.server import serving
from tests.reliability.caches import BLOBS, FIRST_STEP, PACKED, SECOND_STEP, Step
from tests.reliability.observed import NAR_AFTER, Outcome, Surroundings
from tests.support.front import proxy_config
from tests.support.objects import hash_part_of

_NEVER_SECONDS: Final = 3600.0
_POLL_SECONDS: Final = 0.3
_CUT: Final = -1  # in place of a status


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that serves, and what its clients ask."""

    around: Surroundings
    url: str

    async def ask(self, path: str, *, method: str = "GET") -> tuple[int, bytes]:
        """Send a request; a body that is cut has no status."""
        try:
            async with self.around.http.request(method, f"{self.url}{path}") as response:
                body = await response.read()
                if "nar/" not in path:
                    self.around.outside.texts.append(f"{response.headers} {body.decode()}")
                return response.status, body
        except aiohttp.ClientPayloadError:
            return _CUT, b""

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((await self.ask("/_status"))[1])
        return status

    async def lists(self, seeds: tuple[str, ...]) -> bool:
        # By HEAD, for which nothing is fetched ahead: the fault is for what is asked for.
        answers = [(await self.ask(f"/{hash_part_of(seed)}.narinfo", method="HEAD"))[0] for seed in seeds]
        assert set(answers) <= {200, 404}, "Nix survives only these"
        return answers == [200] * len(seeds)

    async def look(self) -> None:
        """Let the proxy look at the registry, by the request for it, or by its own poll, which is a HEAD."""
        if self.around.operation != "manifest-head":
            status, _ = await self.ask("/_refresh", method="POST")
            assert status in {200, 502}
            return
        before = (await self.status())["counters"]["refreshes"]
        # One that may meet the fault, the next one, and the beginning of yet another.
        while (await self.status())["counters"]["refreshes"] < before + 3:  # noqa: ASYNC110  a status is no event
            await asyncio.sleep(_POLL_SECONDS / 4)


@asynccontextmanager
async def running_proxy(around: Surroundings) -> AsyncIterator[Proxy]:
    polls = around.operation == "manifest-head"
    config = proxy_config(around.folder, index_ttl_seconds=_POLL_SECONDS if polls else _NEVER_SECONDS)
    client = around.client()
    try:
        async with serving(config, [ConfiguredCache(client)]) as [url]:
            proxy = Proxy(around, url)
            # The first request waits for the first index, but on a busy machine that takes longer.
            while not await proxy.lists(BLOBS):
                await proxy.ask("/_refresh", method="POST")
            yield proxy
            await proxy.ask(f"/{hash_part_of(BLOBS[0])}.narinfo")
            await proxy.ask("/metrics")
            await proxy.ask("/public-key")
    finally:
        await client.close()


async def index(around: Surroundings) -> tuple[Outcome, Outcome]:
    """The cache grows while the fault strikes: nothing that was served may be lost."""
    around.steps[0].put_into(around.ghcr)
    async with running_proxy(around) as proxy:
        around.arm(1)
        around.steps[1].put_into(around.ghcr)
        await proxy.look()
        once = Outcome("recovers")
        if not await proxy.lists(FIRST_STEP):
            said = await _index_trouble(proxy)
            assert await proxy.lists((*BLOBS, *PACKED)), "what was served is lost"
            around.disarm()
            await proxy.look()
            once = Outcome("serves last good, then recovers", said)
        assert await proxy.lists((*BLOBS, *PACKED, *FIRST_STEP)), "it does not recover"
        around.arm(None)
        around.steps[2].put_into(around.ghcr)
        await proxy.look()
        said = await _index_trouble(proxy)
        assert await proxy.lists((*BLOBS, *PACKED, *FIRST_STEP)), "what was served is lost"
        is_unnoticed = await proxy.lists(SECOND_STEP)
        around.disarm()
        await proxy.look()
        assert await proxy.lists((*BLOBS, *PACKED, *FIRST_STEP, *SECOND_STEP)), "it does not recover"
        state = (await proxy.status())["index"]
        assert (state["last_error"], state["damaged_tables"], state["complete"]) == (None, {}, True)
        assert state["regression"] is None, "trouble is taken for a rollback"
    return once, Outcome("does without" if is_unnoticed else "serves last good", said)


async def _index_trouble(proxy: Proxy) -> str:
    state = (await proxy.status())["index"]
    said = [state["last_error"] or "", *state["damaged_tables"].values()]
    said.append("" if state["complete"] else "not complete")
    return " | ".join(filter(None, said))


async def nar(around: Surroundings) -> tuple[Outcome, Outcome]:
    """A NAR that is a blob of its own is asked for."""
    return await _fetch(around, BLOBS, "HEAD" if around.operation == "blob-head" else "GET")


async def pack(around: Surroundings) -> tuple[Outcome, Outcome]:
    """A NAR in a pack is asked for."""
    return await _fetch(around, PACKED, "GET")


async def _fetch(around: Surroundings, seeds: tuple[str, str], method: str) -> tuple[Outcome, Outcome]:
    first, second = seeds
    step = around.steps[0]
    step.put_into(around.ghcr)
    async with running_proxy(around) as proxy:
        around.arm(1, after=NAR_AFTER)
        once = await _try(proxy, step, first, method)
        around.disarm()
        if once != "recovers":
            once += _then(await _try(proxy, step, first, method))
        said_before = len(around.log.about(around.ghcr.host))
        around.arm(None, after=NAR_AFTER)
        forever = await _try(proxy, step, second, method)
        around.disarm()
        if forever != "recovers":
            forever += _then(await _try(proxy, step, second, method))
        said = around.log.about(around.ghcr.host)[said_before:]
    return Outcome(once), Outcome(forever if forever != "recovers" else "does without", said)


def _then(again: str) -> str:
    return f", then {'recovers' if again == 'recovers' else '404'}"


async def _try(proxy: Proxy, step: Step, seed: str, method: str) -> str:
    status, body = await proxy.ask(f"/{step.narinfos[seed].url}", method=method)
    if status == _CUT:
        return "cut"
    if status == 404:
        return "miss"
    assert status == 200
    assert method == "HEAD" or body == step.compressed(seed), (
        "a wrong byte reached a client as a whole answer"
    )
    return "recovers"

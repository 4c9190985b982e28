"""What is slow is no fault: there are limits on standing still, and none on how long a transfer takes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from nixcache_oci.clients.http.reply import DOCUMENT_BYTES_PER_SECOND
from tests.hostile.test_registry_data import put_segment
from tests.reliability.caches import BLOBS, FIRST_STEP, PACKED, make_steps, names_in
from tests.reliability.observed import LogLines, Outside, Surroundings
from tests.reliability.proxy_roles import running_proxy
from tests.reliability.results import Cell, write_suite
from tests.reliability.writer_roles import Machine
from tests.support.ghcr import GhcrDouble
from tests.support.odd_tables import narinfo_of, table_of
from tests.support.slow_line import slow_line

LIMIT_SECONDS = 1.0  # of patience, and of standing still: a busy machine may well pause for half of it
SLOW_SECONDS = 4 * LIMIT_SECONDS  # what a transfer takes at least

Job = Callable[[Surroundings], Awaitable[None]]


@pytest.fixture(scope="module")
def results() -> Iterator[list[Cell]]:
    cells: list[Cell] = []
    yield cells
    what = (
        "Transfers that trickle for many times longer than a connection may stand still, and than all tries"
        " of an operation may take, above the least rate: none of them is given up."
    )
    write_suite(20, "Progress", what, len(JOBS), cells)


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Surroundings]:
    with GhcrDouble() as ghcr:
        async with aiohttp.ClientSession() as http:
            yield Surroundings(
                ghcr,
                "anything",
                "none",
                tmp_path,
                await make_steps(),
                http,
                LogLines(),
                Outside(),
                patience=LIMIT_SECONDS,
                stall=LIMIT_SECONDS,
            )


async def refresh(around: Surroundings) -> None:
    """Tags and index come twice as fast as documents have to, and a table for many seconds."""
    around.steps[0].put_into(around.ghcr)
    async with running_proxy(around) as proxy:
        around.steps[1].put_into(around.ghcr)
        # Hash parts do not compress.
        put_segment(around.ghcr, table_of(*sorted(narinfo_of(f"slow-{number}") for number in range(2_500))))
        around.ghcr.bandwidth = 2 * DOCUMENT_BYTES_PER_SECOND
        await proxy.look()
        around.ghcr.bandwidth = None
        assert await proxy.lists((*BLOBS, *PACKED, *FIRST_STEP))


async def fetch(around: Surroundings, seed: str) -> None:
    step = around.steps[0]
    step.put_into(around.ghcr)
    async with running_proxy(around) as proxy:
        around.ghcr.bandwidth = 8_000
        assert await proxy.ask(f"/{step.narinfos[seed].url}") == (200, step.compressed(seed))
        around.ghcr.bandwidth = None


async def fetch_blob(around: Surroundings) -> None:
    """A NAR that is a blob of its own goes through."""
    await fetch(around, BLOBS[0])


async def fetch_pack(around: Surroundings) -> None:
    """A pack is read whole before its first byte goes on."""
    await fetch(around, PACKED[0])


async def publish(around: Surroundings) -> None:
    """A large blob goes up, and then all that lists it."""
    around.steps[0].put_into(around.ghcr)
    machine = Machine(around)
    infos = machine.add("slow")
    async with slow_line(around.ghcr.host, 60_000) as host:
        assert await machine.publish(infos, host=host) is None
    assert {info.store_path.base_name for info in infos} <= await names_in(around.ghcr)


JOBS: dict[str, Job] = {
    "a proxy reads a new index": refresh,
    "a client gets a NAR that is a blob": fetch_blob,
    "a client gets a NAR in a pack": fetch_pack,
    "a publisher sends a blob": publish,
}


@pytest.mark.parametrize("name", JOBS)
async def test_a_slow_line_is_no_fault(name: str, around: Surroundings, results: list[Cell]) -> None:
    """Whatever comes, if only byte by byte, is waited for."""
    clock = asyncio.get_running_loop().time
    started = clock()
    await JOBS[name](around)
    assert clock() - started > SLOW_SECONDS, "too fast to show anything"
    results.append(Cell(f"{name}, slowly", 1, "done"))

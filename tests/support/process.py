"""What this process holds, and waiting for what its threads do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

_MOST_SECONDS = 30.0


def open_files_in(folder: Path) -> list[Path]:
    """Files of a folder that this process holds open; what else it holds is other tests' to close."""
    links = [Path(link).resolve() for link in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.is_relative_to(folder)]


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(_MOST_SECONDS):
        while not condition():  # noqa: ASYNC110  what threads do is no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def stalls_measured() -> AsyncIterator[list[float]]:
    """Give the longest time for which the event loop did nothing else, once the block has ended."""
    longest = [0.0]

    async def watch() -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await asyncio.sleep(0.005)
            longest[0] = max(longest[0], clock() - began)

    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        watching.cancel()

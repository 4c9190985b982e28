"""What this process holds, and waiting for what its threads do."""

import asyncio
from collections.abc import Callable
from pathlib import Path

_MOST_SECONDS = 30.0


def count_open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(_MOST_SECONDS):
        while not condition():  # noqa: ASYNC110  what threads do is no event
            await asyncio.sleep(0.005)

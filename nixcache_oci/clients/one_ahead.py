"""Blocking work in pieces, each begun before what the one before it gave is made use of."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TypeVar

_Result = TypeVar("_Result")


async def one_ahead(jobs: Iterable[Callable[[], _Result]]) -> AsyncGenerator[_Result]:
    """Run jobs on threads, one at a time and in order, and yield what they give.

    Where this generator has ended, by an error or by being closed, no job is at work any more.
    """
    loop = asyncio.get_running_loop()
    started = (loop.run_in_executor(None, job) for job in jobs)
    running = next(started, None)
    try:
        while running is not None:
            result = await asyncio.shield(running)
            running = next(started, None)
            yield result
    finally:
        if running is not None:
            await asyncio.wait([running])
            running.exception()  # nobody else will hear of it

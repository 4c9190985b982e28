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
    waiting = iter(jobs)
    running: asyncio.Future[_Result] | None = None
    try:
        if (first := next(waiting, None)) is not None:
            running = loop.run_in_executor(None, first)
        while running is not None:
            result = await asyncio.shield(running)
            following = next(waiting, None)
            running = loop.run_in_executor(None, following) if following is not None else None
            yield result
    finally:
        if running is not None:
            await asyncio.wait([running])
            running.exception()  # nobody else will hear of it

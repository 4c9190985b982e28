"""Several jobs at once, a bounded number of them."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def run_all(jobs: Iterable[Coroutine[Any, Any, T]], at_once: int) -> list[T]:
    """Run every job, at most ``at_once`` of them at a time, and give the results in the jobs' order.

    The first error ends the others and is raised as it is, not as a group.
    """
    room = asyncio.Semaphore(at_once)

    async def run(job: Coroutine[Any, Any, T]) -> T:
        async with room:
            return await job

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(job)) for job in jobs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

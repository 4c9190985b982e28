"""Several jobs at once, a bounded number of them, and jobs on threads."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from nixcache_oci.cache.progress import SILENT, Stage

P = ParamSpec("P")
T = TypeVar("T")


async def run_all(jobs: Iterable[Coroutine[Any, Any, T]], at_once: int, stage: Stage = SILENT) -> list[T]:
    """Run every job, at most ``at_once`` of them at a time, and give the results in the jobs' order.

    The stage is told of each that is done.
    The first error ends the others and is raised as it is, not as a group.
    """
    started = list(jobs)
    room = asyncio.Semaphore(at_once)

    async def run(job: Coroutine[Any, Any, T]) -> T:
        async with room:
            result = await job
        stage.advance(1)
        return result

    try:
        async with task_group() as group:
            tasks = [group.create_task(run(job)) for job in started]
    finally:
        for job in started:
            job.close()  # one that was cancelled before its turn would be reported as never awaited
    return [task.result() for task in tasks]


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks beside what is done within, and wait for them.

    An error within ends them; one of theirs ends what is done within. It is raised as it is, not as a group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@asynccontextmanager
async def in_background(job: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Begin a job beside what is done within, which waits for it when it wants the result.

    What is not waited for is ended, and so are its errors: what failed within counts more.
    """
    task = asyncio.create_task(job)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen, and of no use to anybody any more


async def run_in_thread(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a job on a thread; whoever is cancelled meanwhile still waits for its end.

    A thread cannot be cancelled, and nobody may clean up behind it while it is at work.
    """
    running = asyncio.ensure_future(asyncio.to_thread(job, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen, and of no use to anybody any more
        raise

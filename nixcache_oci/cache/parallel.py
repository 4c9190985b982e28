"""Bounded concurrency, jobs on threads, and jobs in slices of the event loop's time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, ParamSpec, TypeVar

from nixcache_oci.cache.progress import SILENT, Stage

P = ParamSpec("P")
T = TypeVar("T")

_SLICE_SECONDS: Final = 0.0005


async def run_all(jobs: Iterable[Coroutine[Any, Any, T]], at_once: int, stage: Stage = SILENT) -> list[T]:
    """Run all jobs, at most ``at_once`` at a time, and return the results in order.

    Each is reported to the stage. The first error cancels the others, and is raised as it is, not as a group.
    """
    started = list(jobs)
    semaphore = asyncio.Semaphore(at_once)

    async def run(job: Coroutine[Any, Any, T]) -> T:
        async with semaphore:
            result = await job
        stage.advance(1)
        return result

    try:
        async with task_group() as group:
            tasks = [group.create_task(run(job)) for job in started]
    finally:
        for job in started:
            job.close()  # else one cancelled before its turn is reported as never awaited
    return [task.result() for task in tasks]


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises its first error as it is, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@asynccontextmanager
async def in_background(job: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run a job in the background of the block, which may await its result.

    If it does not, the job is cancelled, and its errors are dropped: those of the block matter more.
    """
    task = asyncio.create_task(job)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        retrieve(task)


async def run_in_thread(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a job on a thread; if cancelled, still wait for its end.

    A thread cannot be cancelled, and nothing may be cleaned up while it runs.
    """
    running = asyncio.ensure_future(asyncio.to_thread(job, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        retrieve(running)
        raise


async def run_in_slices(
    job: Generator[None, None, T], pause_seconds: float, slice_seconds: float | None = None
) -> T:
    """Run a job of short steps, half a millisecond or so at a time: in between, requests are answered.

    A thread would hold them up for longer: Python lets it run for 5 ms whenever they wait for anything.
    """
    most_seconds = _SLICE_SECONDS if slice_seconds is None else slice_seconds
    since = time.monotonic()
    while True:
        try:
            next(job)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() - since >= most_seconds:
            await asyncio.sleep(pause_seconds)
            since = time.monotonic()


def run_at_once(job: Generator[None, None, T]) -> T:
    """Run a job of short steps where nobody else needs a turn."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            result: T = end.value
            return result


def retrieve(task: "asyncio.Future[Any]") -> None:
    """Mark a done task's error as retrieved: nobody may be waiting for it any more."""
    if not task.cancelled():
        task.exception()


async def cancel_all(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancel tasks and wait for their end; their errors are dropped."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

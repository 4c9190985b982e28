"""Jobs at once, and jobs on threads."""

import asyncio
import gc
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from nixcache_oci.cache.parallel import in_background, run_all, run_in_thread, task_group
from nixcache_oci.errors import FormatError


async def test_the_results_come_in_the_order_of_the_jobs() -> None:
    """Whichever ends first; and never more than so many at once."""
    running = most = 0

    async def job(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 - number):
            await asyncio.sleep(0)
        running -= 1
        return number

    assert await run_all((job(number) for number in range(10)), 3) == list(range(10))
    assert most == 3
    assert await run_all([], 3) == []


async def test_the_first_error_ends_the_others() -> None:
    """It comes as it is, and neither those at work nor those that never began are left over."""
    begun, cancelled = [], []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise FormatError("first")

    async def wait() -> None:
        begun.append(True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(FormatError, match="first"):
        await run_all([wait(), fail(), *(wait() for _ in range(5))], 2)
    assert begun == cancelled
    assert len(begun) < 6
    gc.collect()  # a job that was never awaited would warn here


async def test_whoever_is_cancelled_waits_for_the_thread() -> None:
    """What the thread uses is cleaned up right behind: it must have ended by then."""
    began, may_end, steps = threading.Event(), threading.Event(), []

    def job() -> None:
        began.set()
        may_end.wait(10)
        steps.append("ended")
        raise OSError("nobody hears this")

    async def run() -> None:
        try:
            await run_in_thread(job)
        finally:
            steps.append("cleaned up")

    running = asyncio.create_task(run())
    await asyncio.to_thread(began.wait, 10)
    running.cancel()
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert steps == ["ended", "cleaned up"]


async def test_a_threads_result_and_error_come_back() -> None:
    """As from a plain call."""
    assert await run_in_thread(int, "12", base=8) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        await run_in_thread(int, "x")


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_was_begun_is_waited_for_where_it_is_wanted() -> None:
    """It runs beside; an error of its own waits until then, and comes as it is."""

    async def give() -> int:
        await asyncio.sleep(0)
        return 1

    async def fail() -> int:
        raise FormatError("beside")

    async def want(job: Coroutine[Any, Any, int]) -> int:
        async with in_background(job) as running:
            await turns()
            return await running

    assert await want(give()) == 1
    with pytest.raises(FormatError, match="beside"):
        await want(fail())


@pytest.mark.parametrize("fails_too", [False, True])
async def test_what_nobody_wants_any_more_is_ended(*, fails_too: bool) -> None:
    """What failed within is told, and nothing of the other is left over or complained of."""
    ended = []

    async def wait() -> None:
        if fails_too:
            raise FormatError("beside")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fail() -> None:
        async with in_background(wait()):
            await turns()
            raise FormatError("within")

    with pytest.raises(FormatError, match="within"):
        await fail()
    gc.collect()
    assert ended == ([] if fails_too else [True])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_tasks_beside_end_with_the_first_error() -> None:
    """Whether it is theirs or comes from within; it is no group."""

    async def wait() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise FormatError("first")

    async def run(beside: Coroutine[Any, Any, None], within: Coroutine[Any, Any, None]) -> None:
        async with task_group() as group:
            group.create_task(beside)
            await turns()
            await within

    with pytest.raises(FormatError, match="first"):
        await run(wait(), fail())
    never = wait()
    with pytest.raises(FormatError, match="first"):
        await run(fail(), never)
    never.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}

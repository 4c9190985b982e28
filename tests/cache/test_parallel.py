"""Jobs at once, and jobs on threads."""

import asyncio
import gc
import threading

import pytest

from nixcache_oci.cache.parallel import run_all, run_in_thread
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

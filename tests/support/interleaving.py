"""Writers of one model repository that step when they are told to: any interleaving can be tried."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.support.model_repository import ModelRepository, ModelStorage

_SETTLING = 20  # turns of the event loop until everything that a writer does at once waits for its step


class CrashError(Exception):
    """The writer's machine is gone."""


class Writer:
    """A client that takes a step whenever it is told to; a crash ends it before its n-th step."""

    def __init__(
        self, storage: ModelStorage, crash_at: int | None, job: Callable[[ModelRepository], Awaitable[None]]
    ) -> None:
        self._turns = asyncio.Semaphore(0)
        self._ready = asyncio.Event()
        self._waiting = 0
        self._steps = 0
        self._crash_at = crash_at
        self._task = asyncio.ensure_future(job(ModelRepository(storage, self._before)))
        self._task.add_done_callback(lambda _: self._ready.set())

    async def _before(self, _step: str) -> None:
        self._waiting += 1
        self._ready.set()
        await self._turns.acquire()
        self._steps += 1
        if self._steps == self._crash_at:
            raise CrashError

    async def step(self) -> None:
        """Let it take its next step, if it has one."""
        await self._ready.wait()  # a thread may be at work for it
        for _ in range(_SETTLING):
            await asyncio.sleep(0)
        if not self._task.done():
            self._waiting -= 1
            if not self._waiting:
                self._ready.clear()
            self._turns.release()

    async def end(self) -> None:
        """Take all steps that are left."""
        while not self._task.done():
            await self.step()
        with suppress(CrashError):
            await self._task


async def nothing(_step: str) -> None:
    """No hook."""


async def no_sleep(_seconds: float) -> None:
    """In a model, time is steps."""

"""What the page asks of a cache beside serving it: one thing at a time, in slices, for a bounded time."""

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

from aiohttp import web

from nixcache_oci.cache.parallel import run_in_slices

T = TypeVar("T")

MOST_WAITING: Final = 32
"""Pages that wait for their turn to search or to be written."""

JOB_SECONDS: Final = 10.0
"""That one page may take in its turn; a search in four million paths takes half of it."""

# Clients that ask for narinfos meanwhile wait for one slice each time.
_SLICE_SECONDS: Final = 0.0001


class PageJobs:
    """Runs what pages are made of, between the requests of Nix."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def run(self, job: Generator[None, None, T]) -> T:
        """Run a job of short steps; raises HTTPServiceUnavailable if many wait, or it takes too long."""
        if self._waiting >= MOST_WAITING:
            raise web.HTTPServiceUnavailable
        self._waiting += 1
        try:
            async with self._turn, asyncio.timeout(JOB_SECONDS):
                return await run_in_slices(job, 0, _SLICE_SECONDS)
        except TimeoutError:
            raise web.HTTPServiceUnavailable from None
        finally:
            self._waiting -= 1

"""Looks at the repository that clients ask for: who asks meanwhile shares the next one; bounded in number."""

import asyncio
from collections import deque
from typing import Final, Protocol

MOST_IN_A_ROW: Final = 5
WINDOW_SECONDS: Final = 5.0
"""So many looks begin in so long a time, and not more."""


class Refreshable(Protocol):
    """An index."""

    async def refresh(self, *, thoroughly: bool) -> None:
        """Look at the repository now."""


class RefreshCoalescer:
    """Refreshes an index, for any number of clients.

    Args:
        index: to refresh.
    """

    def __init__(self, index: Refreshable) -> None:
        self._index = index
        self._begun_at: deque[float] = deque(maxlen=MOST_IN_A_ROW)
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Look at the repository after now; one that began before may have missed what the client knows of.

        Raises:
            Error: it could not be read; the catalog stays as it was.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._refresh_after(self._running), name="refresh for a client")
            self._next.add_done_callback(_retrieve)
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [task for task in (self._next, self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh_after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait([running])
        clock = asyncio.get_running_loop().time
        if len(self._begun_at) == MOST_IN_A_ROW:
            await asyncio.sleep(self._begun_at[0] + WINDOW_SECONDS - clock())
        self._begun_at.append(clock())
        self._running, self._next = self._next, None
        await self._index.refresh(thoroughly=True)


def _retrieve(task: asyncio.Task[None]) -> None:
    # Whoever waited for it may be gone.
    if not task.cancelled():
        task.exception()

"""Refreshes that clients ask for: concurrent requests share one, and their rate is bounded."""

import asyncio
from collections import deque
from typing import Final, Protocol

from nixcache_oci.cache.parallel import cancel_all, retrieve

MOST_IN_A_ROW: Final = 5
WINDOW_SECONDS: Final = 5.0
"""Limit of refreshes per window."""


class Refreshable(Protocol):
    """An index."""

    async def refresh(self, *, thoroughly: bool) -> None:
        """Read the repository now."""


class RefreshCoalescer:
    """Refreshes an index, for any number of clients."""

    def __init__(self, index: Refreshable) -> None:
        self._index = index
        self._begun_at: deque[float] = deque(maxlen=MOST_IN_A_ROW)
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Refresh, starting after this call: a running refresh may miss what the client knows of.

        Raises Error if the repository could not be read; the catalog is unchanged.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._refresh_after(self._running), name="refresh for a client")
            self._next.add_done_callback(retrieve)
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """Cancel running refreshes."""
        await cancel_all(task for task in (self._next, self._running) if task is not None)

    async def _refresh_after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait([running])
        clock = asyncio.get_running_loop().time
        if len(self._begun_at) == MOST_IN_A_ROW:
            await asyncio.sleep(self._begun_at[0] + WINDOW_SECONDS - clock())
        self._begun_at.append(clock())
        self._running, self._next = self._next, None
        await self._index.refresh(thoroughly=True)

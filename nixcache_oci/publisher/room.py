"""Room for what an upload holds at once, in memory or in files."""

import asyncio


class Room:
    """Bytes that may be in use at once; a wish for more than all of them waits until none is.

    First come, first served: many small wishes never keep a large one waiting for ever.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Condition()

    async def take(self, wanted: int) -> int:
        """Wait until there is room; gives what to give back."""
        wanted = min(wanted, self._size)
        async with self._turn, self._freed:
            await self._freed.wait_for(lambda: self._used + wanted <= self._size)
            self._used += wanted
        return wanted

    async def give_back(self, taken: int) -> None:
        """Make room."""
        async with self._freed:
            self._used -= taken
            self._freed.notify_all()

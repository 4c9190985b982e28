"""A pack on its way: whoever wants a slice waits for the bytes of that, and not for all of the pack."""

import asyncio
from collections.abc import Awaitable, Callable


class Arrival:
    """What has come of a pack; implements ``Receiver``. Nothing of it is checked.

    Args:
        when_open: is told how many bytes the pack has, before they come.
    """

    def __init__(self, when_open: Callable[[int], Awaitable[None]]) -> None:
        self._when_open = when_open
        self._content = bytearray()
        self._arrived = 0
        self._is_over = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def begin(self, content: bytearray) -> None:
        """Take the place for the bytes, all of them."""
        self._content = content
        await self._when_open(len(content))

    def advance(self, arrived: int) -> None:
        """Hear that so many bytes are in their place."""
        self._arrived = arrived
        self._wake(arrived)

    def end(self) -> None:
        """Hear that no more will come."""
        self._is_over = True
        self._wake(max((end for end, _ in self._waiting), default=0))

    async def reach(self, end: int) -> None:
        """Wait until all bytes before ``end`` are here, or no more will come."""
        if not self._is_over and self._arrived < end:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append((end, waiting))
            await waiting

    def view(self, start: int, end: int) -> memoryview | None:
        """Give the bytes from ``start`` to before ``end``; None where they are not here."""
        return memoryview(self._content)[start:end] if end <= self._arrived else None

    def _wake(self, arrived: int) -> None:
        woken = [waiting for end, waiting in self._waiting if end <= arrived]
        self._waiting = [(end, waiting) for end, waiting in self._waiting if end > arrived]
        for waiting in woken:
            if not waiting.done():
                waiting.set_result(None)

"""NARs that stream at once: bounded, each in its turn, and none held up by clients that do not read."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from nixcache_oci.proxy import nar_streams
from nixcache_oci.proxy.front.connections import Connection, Connections
from nixcache_oci.proxy.nar_streams import BusyError, NarStreams
from tests.support.front import let_run


class Line(Connection):
    """A connection whose client takes what the test says."""

    __slots__ = ("is_cut", "is_waiting", "so_far")

    def __init__(self) -> None:
        super().__init__()
        self.so_far = 0
        self.is_waiting = True
        self.is_cut = False

    def progress(self) -> tuple[int, bool]:
        return self.so_far, self.is_waiting

    def cut(self) -> None:
        self.is_cut = True


def make(most: int) -> NarStreams:
    return NarStreams(most, Connections(100))


async def hold(streams: NarStreams, line: Connection, order: list[Connection], end: asyncio.Event) -> None:
    async with streams.turn(line):
        order.append(line)
        await end.wait()


async def test_each_has_its_turn() -> None:
    """Never more than there may be, and in the order in which they came; an error gives its place back."""
    streams, order = make(2), list[Connection]()
    lines = [Line() for _ in range(5)]
    ends = [asyncio.Event() for _ in lines]
    tasks = [
        asyncio.create_task(hold(streams, line, order, end)) for line, end in zip(lines, ends, strict=True)
    ]
    for number in range(5):
        await let_run()
        assert order == lines[: number + 2]
        ends[number].set()
    await asyncio.gather(*tasks)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            async with streams.turn(lines[0]):
                raise ZeroDivisionError
    assert not lines[0].is_stream


async def test_who_leaves_gives_the_turn_on() -> None:
    """Who hung up, who was cancelled before or after it was called, and who waited for too long."""
    streams, order, end = make(1), list[Connection](), asyncio.Event()
    first, gone, cancelled, last = (Line() for _ in range(4))
    holding = asyncio.create_task(hold(streams, first, order, end))
    await let_run()
    waiting = [asyncio.create_task(hold(streams, line, order, asyncio.Event())) for line in (gone, cancelled)]
    final = asyncio.create_task(hold(streams, last, order, end))
    await let_run()
    assert gone.when_lost is not None
    gone.when_lost()
    with pytest.raises(ConnectionResetError):
        await waiting[0]
    end.set()
    await holding  # its place is given to the next at that very moment
    waiting[1].cancel()
    await let_run()
    assert waiting[1].cancelled()
    await final
    assert order == [first, last]


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In length and in time; what cannot wait is answered at once, and Nix turns to another cache."""
    monkeypatch.setattr(nar_streams, "MOST_WAITING", 1)
    monkeypatch.setattr(nar_streams, "WAIT_SECONDS", 0.05)
    streams = make(1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(streams.turn(Line()))
        waiting = asyncio.create_task(hold(streams, Line(), [], asyncio.Event()))
        await let_run()
        with pytest.raises(BusyError, match="already"):
            await hold(streams, Line(), [], asyncio.Event())
        with pytest.raises(BusyError, match="within"):
            await waiting
    async with asyncio.timeout(5), streams.turn(Line()):
        pass


async def test_slow_clients_make_room_for_others() -> None:
    """Those that take least, and only while somebody waits; who waits for the registry is not slow."""
    streams, order, end = make(4), list[Connection](), asyncio.Event()
    dead, slow, idle, quick = lines = [Line() for _ in range(4)]
    tasks = [asyncio.create_task(hold(streams, line, order, end)) for line in lines]
    await let_run()
    start = asyncio.get_running_loop().time()
    idle.is_waiting = False

    def pass_time(seconds: float) -> None:
        slow.so_far += 100
        quick.so_far += 1_000_000
        streams.sweep(start + seconds)

    pass_time(11)
    assert not any(line.is_cut for line in lines)
    tasks.append(asyncio.create_task(hold(streams, Line(), order, end)))
    await let_run()
    pass_time(15)
    assert not any(line.is_cut for line in lines)
    pass_time(22)
    assert [line.is_cut for line in lines] == [True, False, False, False]
    dead.so_far += 10**9
    pass_time(33)
    assert [line.is_cut for line in lines] == [True, True, False, False]
    end.set()
    await asyncio.gather(*tasks)

"""What a client that asks for everything and reads nothing can have the proxy hold: little, and no more."""

import asyncio
import re
from collections.abc import Callable

import pytest

from nixcache_oci.cache.nar_url import MAX_PACKED_NAR_BYTES
from nixcache_oci.proxy.front.connection import AHEAD_BYTES, TURN_BYTES, Front
from tests.support.front import make_bench
from tests.support.front_requests import LAST
from tests.support.packs import PackedCache, publish_packs

# Random bytes, which zstd makes a little longer: nearly the largest slices that there are.
NAR_BYTES = MAX_PACKED_NAR_BYTES - 1024
COUNT = 60
# What event loops let a transport hold before they say that it is full, unless they are told otherwise.
FULL_BYTES = 64 * 1024
HELD_BYTES = FULL_BYTES + TURN_BYTES + MAX_PACKED_NAR_BYTES + 1024  # a head or two
# Requests: what makes a client wait, and the one piece that exceeds it, as large as an event loop reads it.
HELD_AHEAD_BYTES = AHEAD_BYTES + 256 * 1024


def _event_loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    try:
        import uvloop  # noqa: PLC0415  # it is not built for every platform
    except ImportError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PackedCache:
    return publish_packs(tmp_path_factory.mktemp("slices"), count=2, nar_bytes=NAR_BYTES)


def _requests(cache: PackedCache, count: int) -> bytes:
    return b"".join(
        f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {'x' * 3000}\r\n\r\n".encode()
        for number in range(count)
        for target in (cache.slices[number % 2], cache.narinfos[number % 2])
    )


@pytest.mark.parametrize("new_loop", _event_loops())
def test_a_transport_holds_one_turn(
    cache: PackedCache, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Requests behind are left unread until the client has taken enough; and then all answers come."""
    held: list[tuple[int, int]] = []

    async def run() -> bytes:
        async with make_bench(cache.folder) as bench, bench.connect() as client:
            for pack in cache.packs:
                await bench.cache.packs.cut_out(pack, 0, 1)
            [connection] = bench.connections
            sending = asyncio.create_task(client.send(_requests(cache, COUNT) + LAST))
            async with asyncio.timeout(60):
                while not client.is_closed:
                    # It hardly ever reads, so that all is held that may be.
                    for _ in range(10):
                        held.append(_holds(connection))
                        await asyncio.sleep(0)
                    client.read()
            await sending
            return client.received

    with asyncio.Runner(loop_factory=new_loop) as runner:
        received = runner.run(run())
    nars = [cache.content_of(nar) for nar in cache.nars]
    answers = re.split(rb"(?=HTTP/1\.1 200 OK\r\n)", received)[1:]
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert bodies[:-1:2] == nars * (COUNT // 2)
    assert bodies[-1] == b"ok\n"
    assert FULL_BYTES < max(size for size, _ahead in held) <= HELD_BYTES
    assert AHEAD_BYTES < max(ahead for _size, ahead in held) <= HELD_AHEAD_BYTES


def _holds(connection: Front) -> tuple[int, int]:
    return connection._transport.get_write_buffer_size(), len(connection._ahead)


@pytest.mark.parametrize("new_loop", _event_loops())
def test_what_waits_for_a_client_holds_no_pack(
    cache: PackedCache, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A slice of 256 KiB is copied, and the 16 MiB around it may go: a view of it would keep all of them."""

    async def run() -> None:
        async with make_bench(cache.folder) as bench, bench.connect() as client:
            packs = bench.cache.packs
            await packs.cut_out(cache.packs[0], 0, 1)
            await client.send(_requests(cache, 20))
            [connection] = bench.connections
            assert _holds(connection)[0] > 0
            [entry] = packs._memory.entries
            content = entry.download.result()
            content.append(0)  # BufferError where anything looks into it

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())

"""The line that makes distance: what it adds, and that it changes no byte."""

import asyncio
import hashlib
import time
import urllib.request
from collections.abc import Iterator

import pytest
from aiohttp import web

from bench.distance import Distance, at_distance
from tests.support.server_thread import ServerThread

BODY = hashlib.shake_256(b"body").digest(3_000_000)
ROUND_TRIP = 0.05
TIMER = 0.01  # seconds: the event loop's timers count in milliseconds, and there are several


@pytest.fixture
def server() -> Iterator[str]:
    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=BODY if request.path == "/body" else b"")

    thread = ServerThread(answer)
    thread.start()
    yield f"127.0.0.1:{thread.ports[0]}"
    thread.stop()


def test_every_byte_comes_and_no_sooner_than_it_could(server: str) -> None:
    """Handshakes and request cost three round trips, and the body its time on the line; nothing is lost."""
    distance = Distance(ROUND_TRIP, rate=20_000_000)
    with at_distance(distance, server) as (host,):
        begun = time.monotonic()
        with urllib.request.urlopen(f"http://{host}/body") as answer:
            assert answer.read() == BODY
    assert time.monotonic() - begun >= 3 * ROUND_TRIP + len(BODY) / distance.rate - TIMER


async def test_a_connection_that_stays_pays_for_its_handshake_once(server: str) -> None:
    """The second request on it takes one round trip: less than what a new connection would."""
    with at_distance(Distance(ROUND_TRIP), server) as (host,):
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        seconds = []
        for _ in range(5):
            begun = time.monotonic()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            seconds.append(time.monotonic() - begun)
        writer.close()
        await writer.wait_closed()
    assert seconds[0] >= 3 * ROUND_TRIP - TIMER
    assert all(one >= ROUND_TRIP - TIMER for one in seconds[1:])
    assert min(seconds[1:]) < seconds[0]


async def test_the_end_of_one_side_reaches_the_other(server: str) -> None:
    """A server that closes is seen to close, after its last byte."""
    with at_distance(Distance(0.01), server) as (host,):
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        writer.write(b"GET /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(BODY)
        writer.close()
        await writer.wait_closed()

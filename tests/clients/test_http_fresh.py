"""Connections that fell silent: a new one is tried soon, once, and the old ones are left alone."""

import asyncio
import time

import pytest

from nixcache_oci.clients.http import fresh
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.store_path import HashPart
from tests.support.upstream_server import HASH_PART, asking, narinfo_text, talk

# Both transports hold these rules.
pytestmark = pytest.mark.usefixtures("_transport")

_BODY = narinfo_text().encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Line:
    """A server whose connections can fall silent, as a NAT makes them: open, and nothing comes."""

    def __init__(self) -> None:
        self.requests: list[int] = []  # the number of the connection that each came over
        self.connections = 0
        self.silent_up_to = 0
        self.seconds = 0.0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        while request := await reader.readuntil(b"\r\n\r\n"):
            self.requests.append(number)
            if number > self.silent_up_to:
                await asyncio.sleep(self.seconds)
                writer.write(_ANSWER if HASH_PART.encode() in request else _MISSING)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setattr(fresh, "SILENT_SECONDS", 0.2)
    return Line()


async def test_silence_on_a_used_connection_is_tried_on_a_new_one(line: Line) -> None:
    """After suspend every open connection is dead: each request is answered soon, and later ones at once."""
    async with talk(line.talk) as url, asking(url, answer_seconds=30) as upstreams:
        await asyncio.gather(*(upstreams.find(HASH_PART) for _ in range(3)))
        line.silent_up_to = line.connections
        opened = line.connections
        async with asyncio.timeout(25):
            found = await asyncio.gather(*(upstreams.find(HASH_PART) for _ in range(2)))
        assert None not in found
        line.requests.clear()
        for _ in range(4):
            assert await upstreams.find(HASH_PART) is not None
        assert all(number > opened for number in line.requests), "a dead connection was used again"
        assert upstreams.health()[0].failures == 0


async def test_a_slow_answer_is_no_dead_connection(line: Line) -> None:
    """Only one that was used is suspected; the tries go on side by side, whichever comes first counts."""
    line.seconds = 0.5
    async with talk(line.talk) as url, asking(url, answer_seconds=30) as upstreams:
        for requests in (1, 1 + 2):  # and no third so soon
            assert await upstreams.find(HASH_PART) is not None
            assert len(line.requests) == requests


async def test_tries_are_bounded(line: Line) -> None:
    """A server that answers nothing gets three requests for one."""
    async with talk(line.talk) as url, asking(url, answer_seconds=0.7) as upstreams:
        await upstreams.find(HashPart("z" * 32))
        line.requests.clear()
        line.silent_up_to = 1000
        with pytest.raises(UpstreamError, match="no answer in time"):
            await upstreams.find(HASH_PART)
        assert len(line.requests) <= fresh.MOST_TRIES


async def test_after_sleep_all_connections_are_new(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stands still while a machine sleeps, and the time of day does not."""
    async with talk(line.talk) as url, asking(url, answer_seconds=30) as upstreams:
        await upstreams.find(HASH_PART)
        line.silent_up_to = line.connections
        line.requests.clear()
        slept = time.time
        monkeypatch.setattr(time, "time", lambda: slept() + 60)
        assert await upstreams.find(HASH_PART) is not None
        assert line.requests == [2]


async def test_who_gives_up_while_losers_end_closes_the_answer() -> None:
    """Else its connection would be held by nobody."""
    closed: list[object] = []
    tries = 0

    class Answer:
        def close(self) -> None:
            closed.append(self)

    async def send() -> Answer:
        nonlocal tries
        tries += 1
        exchange = fresh.exchange_now.get()
        assert exchange is not None
        exchange.note_sent(is_reused=True)
        if tries == 1:
            try:
                await asyncio.Event().wait()
            finally:
                asyncio.get_running_loop().call_soon(racing.cancel)
        return Answer()

    racing = asyncio.create_task(fresh.send_fresh(fresh.Freshness(), send, again_seconds=30))
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert len(closed) == 1

"""Connections that fell silent: a new one is tried soon, once, and the old ones are left alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nixcache_oci.clients.http import fresh
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.store_path import HashPart
from tests.support.upstream_server import HASH_PART, asking, narinfo_text

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
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                self.requests.append(number)
                if number <= self.silent_up_to:
                    continue
                await asyncio.sleep(self.seconds)
                writer.write(_ANSWER if HASH_PART.encode() in request else _MISSING)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(line: Line) -> AsyncIterator[str]:
    server = await asyncio.start_server(line.talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setattr(fresh, "SILENT_SECONDS", 0.2)
    return Line()


async def test_silence_on_a_used_connection_is_tried_on_a_new_one(line: Line) -> None:
    """After suspend every open connection is dead: each request is answered soon, and later ones at once."""
    async with serving(line) as url, asking(url, answer_seconds=30) as upstreams:
        await asyncio.gather(*(upstreams.find(HASH_PART) for _ in range(3)))
        line.silent_up_to = line.connections
        opened = line.connections
        began = time.monotonic()
        found = await asyncio.gather(*(upstreams.find(HASH_PART) for _ in range(2)))
        assert None not in found
        assert time.monotonic() - began < 5
        line.requests.clear()
        for _ in range(4):
            assert await upstreams.find(HASH_PART) is not None
        assert all(number > opened for number in line.requests), "a dead connection was used again"
        assert upstreams.health()[0].failures == 0


async def test_a_slow_answer_is_no_dead_connection(line: Line) -> None:
    """The first try goes on beside the second; whichever comes first counts, and there is no third soon."""
    async with serving(line) as url, asking(url, answer_seconds=30) as upstreams:
        await upstreams.find(HASH_PART)
        line.requests.clear()
        line.seconds = 0.5
        assert await upstreams.find(HASH_PART) is not None
        assert len(line.requests) == 2


async def test_a_new_connection_has_its_time(line: Line) -> None:
    """Only one that was used before is suspected so soon."""
    line.seconds = 0.5
    async with serving(line) as url, asking(url, answer_seconds=30) as upstreams:
        assert await upstreams.find(HASH_PART) is not None
    assert len(line.requests) == 1


async def test_tries_are_bounded(line: Line) -> None:
    """A server that answers nothing gets three requests for one."""
    async with serving(line) as url, asking(url, answer_seconds=1.5) as upstreams:
        await upstreams.find(HashPart("z" * 32))
        line.requests.clear()
        line.silent_up_to = 1000
        with pytest.raises(UpstreamError, match="no answer in time"):
            await upstreams.find(HASH_PART)
        assert len(line.requests) <= fresh.MOST_TRIES


async def test_after_sleep_all_connections_are_new(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stands still while a machine sleeps, and the time of day does not."""
    async with serving(line) as url, asking(url, answer_seconds=30) as upstreams:
        await upstreams.find(HASH_PART)
        line.silent_up_to = line.connections
        line.requests.clear()
        slept = time.time
        monkeypatch.setattr(time, "time", lambda: slept() + 60)
        assert await upstreams.find(HASH_PART) is not None
        assert line.requests == [2]

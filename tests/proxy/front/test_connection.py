"""The front and the library share a connection: order, ends, time and memory are those of one server."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.proxy import app_keys
from nixcache_oci.proxy.front import connection
from nixcache_oci.proxy.front.aiohttp_protocol import AiohttpProtocol
from nixcache_oci.proxy.front.connections import HEAD_SECONDS
from tests.support.front import Bench, let_run, make_bench
from tests.support.front_requests import LAST
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish

HIT, MISS = (f"/{hash_part_of(seed)}.narinfo" for seed in ("one", "absent"))
PLAIN = f"GET {HIT} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    asyncio.run(publish(Layout(folder / "cache"), [store_object("one")]))
    return folder


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with make_bench(folder) as bench:
        yield bench


async def test_answers_keep_the_order_of_their_requests(bench: Bench) -> None:
    """A hit behind a request that takes its time waits for its turn, as does what is begun."""
    slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with bench.connect() as client:
        await client.send(PLAIN + slow + PLAIN + slow + PLAIN + PLAIN[:20])
        await client.settle()
        assert client.received.count(b"HTTP/1.1 200") == 1
        bench.gate.set()
        await client.send(PLAIN[20:] + LAST)
        received = await client.expect_end()
    kinds = re.findall(rb"(StorePath|slow\n|ok\n)", received)
    assert kinds == [b"StorePath", b"slow\n", b"StorePath", b"slow\n", b"StorePath", b"StorePath", b"ok\n"]


async def test_nothing_follows_an_answer_that_was_cut(bench: Bench) -> None:
    """A narinfo would become the rest of the NAR."""
    async with bench.connect() as client:
        await client.send(b"GET /cut HTTP/1.1\r\nHost: localhost\r\n\r\n" + PLAIN)
        received = await client.expect_end()
    assert received.endswith(bytes(1024))


async def test_nothing_follows_the_last_answer(bench: Bench) -> None:
    """What a client sends behind ``Connection: close`` is no request any more."""
    async with bench.connect() as client:
        await client.send(PLAIN + LAST + PLAIN)
        received = await client.expect_end()
    assert received.count(b"HTTP/1.1 ") == 2


async def test_a_head_in_pieces_costs_the_connection_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library answers it, and then it is the front's turn again."""
    async with bench.connect() as client:
        for number in range(len(PLAIN)):
            await client.send(PLAIN[number : number + 1])
        await client.expect(1)
        await client.settle()
        monkeypatch.setattr(AiohttpProtocol, "data_received", pytest.fail)
        await client.send(PLAIN)
        await client.expect(2)


async def test_a_client_that_sends_ahead_without_end_is_made_to_wait(bench: Bench) -> None:
    """Neither requests behind a slow one nor answers that nobody reads may fill the memory."""
    slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with bench.connect() as client:
        await client.send(slow)
        sending = asyncio.create_task(client.send(PLAIN * 20_000 + LAST))
        await let_run()
        [connection] = bench.connections
        assert not sending.done()
        assert len(connection._ahead) < 2**20
        bench.gate.set()
        await let_run()
        assert not sending.done()
        assert connection._transport.get_write_buffer_size() < 2**20
        received = await client.expect_end()
        await sending
    assert received.count(b"StorePath: ") == 20_000
    assert received.endswith(b"ok\n")


async def test_one_client_cannot_hold_up_the_others(bench: Bench) -> None:
    """A thousand requests in one piece are answered in turns."""
    async with bench.connect() as greedy, bench.connect() as modest:
        await asyncio.get_running_loop().sock_sendall(greedy._end, PLAIN * 1000)
        await asyncio.get_running_loop().sock_sendall(modest._end, PLAIN)
        await modest.expect(1)
        greedy.read()
        assert greedy.received.count(b"HTTP/1.1 ") < 1000
        await greedy.expect(1000)


async def test_a_get_fetches_ahead_and_a_head_does_not(bench: Bench) -> None:
    """As the library's way does: the client asks for the pack next."""
    counters = bench.cache.counters
    async with bench.connect() as client:
        await client.send(PLAIN.replace(b"GET", b"HEAD"))
        await client.expect(1)
        assert counters.ranges_fetched_ahead == 0
        await client.send(PLAIN)
        await client.expect(2)
        assert counters.ranges_fetched_ahead == 1
    assert counters.hits == 2


async def test_a_bug_in_a_look_up_is_the_librarys_to_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """404, and logged whole: an exception here would cut the connection."""
    monkeypatch.setattr("nixcache_oci.cache.catalog.row_key", None)
    async with bench.connect() as client:
        await client.send(PLAIN)
        assert (await client.expect(1)).startswith(b"HTTP/1.1 404 ")
    assert [record.message for record in caplog.records if record.exc_info] == ["unexpected error"]


@pytest.mark.parametrize("with_front", [True, False])
async def test_both_ways_log_alike(
    folder: Path, caplog: pytest.LogCaptureFixture, *, with_front: bool
) -> None:
    """At debug, each answer is a line."""
    caplog.set_level(logging.DEBUG, "nixcache_oci")
    async with make_bench(folder) as bench, bench.connect(with_front=with_front) as client:
        await client.send(PLAIN)
        await client.expect(1)
    [record] = [record for record in caplog.records if record.message == "answered"]
    assert vars(record)["fields"] == {"method": "GET", "path": HIT, "status": 200}


async def test_an_idle_connection_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that began a request; one that waits for its answer stays."""
    monkeypatch.setattr(connection, "_CHECK_SECONDS", 0.01)
    async with bench.connect() as answered, bench.connect() as begun, bench.connect() as waiting:
        await answered.send(PLAIN)
        await begun.send(PLAIN[:30])
        await waiting.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await waiting.settle()
        assert (await answered.expect(1)).startswith(b"HTTP/1.1 200 ")
        # Not before: a busy machine takes as long to begin.
        monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
        await answered.expect_end()
        assert await begun.expect_end() == b""
        bench.gate.set()
        assert (await waiting.expect(1)).startswith(b"HTTP/1.1 200 ")
        await waiting.expect_end()


async def test_the_librarys_own_timer_ends_no_connection_that_is_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of the requests that were answered before they came to it."""
    monkeypatch.setattr(connection, "_CHECK_SECONDS", 0.01)
    async with make_bench(folder, library_idle_seconds=1) as bench, bench.connect() as client:
        await client.send(MISS.join(["GET ", " HTTP/1.1\r\nHost: localhost\r\n\r\n"]).encode())
        for number in range(2, 14):
            await asyncio.sleep(0.1)
            await client.send(PLAIN)
            await client.expect(number)
    assert not client.is_closed


async def test_a_client_that_goes_away_takes_its_request_with_it(bench: Bench) -> None:
    """The library hears of the end of the connection."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(bench.connect())
        await client.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert len(bench.server.connections) == 1
    bench.gate.set()
    await let_run()
    assert bench.server.connections == []


@pytest.mark.parametrize("later", [b"", PLAIN])
@pytest.mark.parametrize("odd", [False, True])
async def test_a_head_that_drips_ends_the_connection(bench: Bench, later: bytes, *, odd: bool) -> None:
    """On a new connection, behind an answer, and on one that is the library's for good."""
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n" if odd else later
    connections = bench.app[app_keys.CONNECTIONS]
    now = asyncio.get_running_loop().time()
    async with bench.connect() as idle, bench.connect() as client:
        await client.send(first)
        await client.expect(bool(first))
        for letter in b"GET / HTTP/1.1\r\nHost: l":
            await client.send(bytes([letter]))
        connections.sweep(now + HEAD_SECONDS - 5)
        await client.settle()
        assert not client.is_closed
        connections.sweep(now + HEAD_SECONDS + 60)
        await client.expect_end()
        await idle.send(PLAIN)
        await idle.expect(1)


async def test_what_is_held_is_let_go(bench: Bench) -> None:
    """What was sent ahead no longer counts once it was answered, and nothing does when all have gone."""
    connections = bench.app[app_keys.CONNECTIONS]
    slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"GET /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    async with bench.connect() as ahead, bench.connect() as half, bench.connect() as odd:
        await ahead.send(slow + PLAIN * 3)
        await half.send(PLAIN[:30])
        await odd.send(body)
        await let_run()
        assert connections._held_bytes == 3 * len(PLAIN) + 2 * 30 + len(body)
        assert connections._busy == 2
        bench.gate.set()
        await ahead.expect(4)
        await half.send(PLAIN[30:])
        await half.expect(1)
        await odd.expect(1)
        await ahead.settle()
        assert (connections._held_bytes, connections._busy) == (0, 0)
        await ahead.send(PLAIN[:9])
        assert connections._held_bytes == 18
    await let_run()
    assert (connections._held_bytes, connections._busy, len(connections)) == (0, 0, 0)


async def test_too_many_requests_leave_room_for_health(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others wait for; who comes too late is cut off, so that Nix asks again."""
    monkeypatch.setattr(bench.app[app_keys.CONNECTIONS], "_most_busy", 1)
    slow = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with bench.connect() as first, bench.connect() as second, bench.connect() as third:
        await first.send(slow)
        await second.send(slow)
        assert await second.expect_end() == b""
        narinfo = f"GET /{'0' * 32}.narinfo HTTP/1.1\r\nHost: localhost\r\nConnection: x\r\n\r\n".encode()
        await third.send(narinfo + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 ([0-9]+)", await third.expect(2)) == [b"404", b"200"]
        bench.gate.set()
        assert (await first.expect(1)).startswith(b"HTTP/1.1 200 ")

"""Connections that requests for small answers share: HTTP/2, and how they come and go."""

import asyncio
import time
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.clients.http import client, fresh
from nixcache_oci.clients.http.curl_generation import MOST_CONNECTIONS
from nixcache_oci.clients.http.public_address import AddressInfo, open_any_socket
from nixcache_oci.errors import UpstreamConnectionError, UpstreamError
from tests.support import http2
from tests.support.http2 import Connection, frame
from tests.support.nginx import nginx_server
from tests.support.small_answers import BODY, asker, fetch, speaks
from tests.support.tls import Authority
from tests.support.upstream_server import (
    HASH_PART,
    answering,
    asking,
    narinfo_text,
    saying,
    serve,
    talk,
    unreachable,
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that sockets were opened for."""
    addresses: list[object] = []

    def note(info: AddressInfo) -> object:
        addresses.append(info[4])
        return open_any_socket(info)

    monkeypatch.setattr(client, "open_any_socket", note)
    return addresses


@pytest.mark.parametrize("is_2", [True, False])
async def test_bursts_share_connections(
    authority: Authority, tmp_path: Path, opened: list[object], *, is_2: bool
) -> None:
    """One, where the server speaks HTTP/2, from the first burst on; else each is kept for the next burst."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").write_bytes(BODY)
    listen = f"listen {{address}} ssl{' http2' if is_2 else ''}; root {tmp_path / 'root'};"
    server = f"{listen} ssl_certificate {authority.chain}; ssl_certificate_key {authority.chain};"
    async with nginx_server(tmp_path / "nginx", server) as address, asker() as http:
        for _ in range(3):
            bodies = await asyncio.gather(*(fetch(http, f"https://{address}/x") for _ in range(96)))
            assert set(bodies) == {BODY}
            await fetch(http, f"https://{address}/x")  # alone: the others stay
    assert len(opened) == 1 if is_2 else len(opened) <= MOST_CONNECTIONS


async def test_a_slow_first_answer_holds_up_nobody(authority: Authority) -> None:
    """Over HTTP/1.1, others need connections of their own, and get them before the first one is answered."""
    others = asyncio.Event()
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 3:
            others.set()
        await others.wait()
        return web.Response(body=BODY)

    async with serve(answer, tls=authority.server) as url, asker() as http:
        assert await asyncio.gather(*(fetch(http, f"{url}/x") for _ in range(3))) == [BODY] * 3


async def test_waiting_for_a_connection_is_no_slow_connection(authority: Authority) -> None:
    """Those that others use are waited for, for as long as these are answered."""
    handler = answering(body=BODY, seconds=0.3)
    async with serve(handler, tls=authority.server) as url, asker(connect_seconds_in_all=0.5) as http:
        await fetch(http, f"{url}/x")
        many = [fetch(http, f"{url}/x") for _ in range(2 * MOST_CONNECTIONS + 1)]
        assert set(await asyncio.gather(*many)) == {BODY}


async def test_a_handshake_has_a_limit(authority: Authority) -> None:
    """As has the time until an address answers at all, each of its own."""
    del authority
    async with talk(saying(again=[0.1, b""])) as url, asker(connect_seconds=0.2) as http:
        with pytest.raises(UpstreamError, match="no connection in time"):
            await fetch(http, f"{url.replace('http', 'https')}/x")
    with unreachable() as url:
        async with asker(connect_seconds=0.2) as http:
            with pytest.raises(UpstreamError, match="no connection in time"):
                await fetch(http, f"{url.replace('http', 'https')}/x")


async def test_closing_waits_for_nothing(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for servers that are silent, nor for names that are being looked up."""
    loop = asyncio.get_running_loop()
    looked_up = asyncio.Event()

    async def look_up(*_: object, **__: object) -> list[object]:
        looked_up.set()
        await asyncio.Event().wait()
        return []

    async def never(_: Connection, __: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    async with speaks(authority, never) as (url, _):
        async with asker() as http:
            first = asyncio.create_task(fetch(http, url))
            await reached.wait()
            monkeypatch.setattr(loop, "getaddrinfo", look_up)
            second = asyncio.create_task(fetch(http, "https://cache.invalid/x"))
            await looked_up.wait()
        with pytest.raises(UpstreamError):
            await first
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second


async def test_a_slow_name_is_no_slow_connection(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit for a connection counts from the address on; those who ask for the name share a look-up."""
    loop = asyncio.get_running_loop()
    find = loop.getaddrinfo
    names: list[object] = []

    async def look_up(host: str, *rest: object, **options: object) -> object:
        names.append(host)
        await asyncio.sleep(0.4)
        return await find("127.0.0.1", *rest, **options)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    tls = authority.server
    async with serve(answering(body=BODY), tls=tls) as url, asker(connect_seconds=0.2) as http:
        named = url.replace("127.0.0.1", "localhost")
        assert await asyncio.gather(*(fetch(http, f"{named}/x") for _ in range(3))) == [BODY] * 3
    assert names == ["localhost"]


@pytest.mark.parametrize("how", ["refused", "goaway", "hung up"])
async def test_what_was_not_begun_is_sent_again(authority: Authority, how: str) -> None:
    """A server that restarts ends connections that it does not answer on any more."""

    async def exchange(connection: Connection, stream: int) -> None:
        if connection.number > 1 or stream == 1:
            await connection.answer(stream, BODY)
        elif how == "refused":
            await connection.send(frame(http2.RST_STREAM, 0, stream, http2.number(http2.REFUSED_STREAM)))
        elif how == "goaway":
            last = http2.number(stream - 2) + http2.number(http2.NO_ERROR)
            await connection.send(frame(http2.GOAWAY, 0, 0, last))
            connection.hang_up()
        else:
            connection.hang_up()

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        assert [await fetch(http, url) for _ in range(2)] == [BODY] * 2
    assert [number for number, _ in requests] == [1, 1, 2]


async def test_a_silent_connection_of_many_requests_is_left(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them share the one new connection that is tried, and later requests use it at once."""
    monkeypatch.setattr(fresh, "SILENT_SECONDS", 0.2)

    async def exchange(connection: Connection, stream: int) -> None:
        if connection.number > 1 or stream == 1:
            await connection.answer(stream, BODY)

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        await fetch(http, url)
        await asyncio.gather(*(fetch(http, url) for _ in range(10)))
        assert [number for number, _ in requests] == [1] * 11 + [2] * 10
        await fetch(http, url)
        assert requests[-1][0] == 2


async def test_a_busy_connection_is_not_silent(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer may be late while another one arrives: nothing is asked for twice."""
    monkeypatch.setattr(fresh, "SILENT_SECONDS", 0.3)

    async def exchange(connection: Connection, stream: int) -> None:
        if stream == 3:  # the head at once, the body slowly
            await connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, http2.OK))
            for _ in range(8):
                await asyncio.sleep(0.1)
                await connection.send(frame(http2.DATA, 0, stream, b"x" * 1000))
            await connection.send(frame(http2.DATA, http2.END_STREAM, stream))
        else:
            await asyncio.sleep(0.8 if stream == 5 else 0)
            await connection.answer(stream, BODY)

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        await fetch(http, url)
        assert len(await asyncio.gather(fetch(http, url), fetch(http, url))) == 2
    assert len(requests) == 3


async def test_idle_connections_are_closed(authority: Authority) -> None:
    """After the client's idle seconds, whether or not another request comes."""
    ended = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        ended.set()

    async with talk(once, tls=authority.server) as url, asker(idle_seconds=0.1) as http:
        await fetch(http, f"{url}/x")
        await ended.wait()


async def test_after_sleep_connections_are_new(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for those that nobody shares."""

    async def exchange(connection: Connection, stream: int) -> None:
        await connection.answer(stream, BODY)

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        await fetch(http, url)
        slept = time.time
        monkeypatch.setattr(time, "time", lambda: slept() + 60)
        await fetch(http, url)
    assert [number for number, _ in requests] == [1, 2]


async def test_what_a_client_streams_has_a_connection_of_its_own(
    authority: Authority, opened: list[object]
) -> None:
    """Its reader may be slow; narinfos, and what is fetched ahead, share theirs."""
    asked: list[object] = []
    peers: list[object] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.transport and request.transport.get_extra_info("peername"))
        return web.Response(body=narinfo_text() if request.path.endswith(".narinfo") else BODY)

    async with serve(answer, tls=authority.server) as url, asking(url) as upstreams:
        narinfo = await upstreams.find(HASH_PART)
        assert narinfo is not None
        _, key, path = narinfo.url.split("/", 2)
        for ahead_bytes in (len(BODY), None):
            async with upstreams.open_nar(key, path, ahead_bytes=ahead_bytes) as nar:
                assert b"".join([chunk async for chunk in nar.chunks]) == BODY
            peers.append(asked[-1])
    assert len(opened) == 1
    assert asked[0] == peers[0] != peers[1]


@pytest.mark.usefixtures("authority")
async def test_who_waits_for_a_connection_keeps_its_generation() -> None:
    """After sleep, the first connection's end closes what is old, but not below those who wait for it."""
    connected: asyncio.Queue[None] = asyncio.Queue()
    may_end = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.put_nowait(None)
        await may_end.wait()
        writer.transport.abort()

    async with talk(hang_up) as url, asker() as http:
        place = url.replace("http://", "https://")
        waiting = [asyncio.create_task(fetch(http, f"{place}/x")) for _ in range(3)]
        await connected.get()
        http._freshness.distrust(time.monotonic())
        waiting.append(asyncio.create_task(fetch(http, f"{place}/x")))
        await connected.get()
        may_end.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in found] == [UpstreamConnectionError] * 4


async def test_a_new_connection_is_given_time_by_all_who_share_it(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow first answer is no sign of a connection that died: nothing is asked twice."""
    monkeypatch.setattr(fresh, "SILENT_SECONDS", 0.2)
    all_asked = asyncio.Event()

    async def answer(connection: Connection, stream: int) -> None:
        if len(requests) >= 10:
            all_asked.set()
        await all_asked.wait()
        await asyncio.sleep(3 * fresh.SILENT_SECONDS)  # what a connection that is proven would be given
        await connection.answer(stream, BODY)

    async with speaks(authority, answer) as (url, requests), asker() as http:
        assert await asyncio.gather(*(fetch(http, url) for _ in range(10))) == [BODY] * 10
    assert len(requests) == 10
    assert {connection for connection, _ in requests} == {1}


async def test_nothing_is_sent_after_closing(authority: Authority) -> None:
    """What is under way over a used connection ends, and is not sent again over a new one."""
    asked: asyncio.Queue[None] = asyncio.Queue()

    async def answer(connection: Connection, stream: int) -> None:
        if len(requests) == 1:
            await connection.answer(stream, BODY)
        asked.put_nowait(None)

    async with speaks(authority, answer) as (url, requests):
        async with asker() as http:
            assert await fetch(http, url) == BODY
            under_way = [asyncio.create_task(fetch(http, url)) for _ in range(6)]
            for _ in range(7):
                await asked.get()
        found = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(one, UpstreamError) for one in found)
        assert {connection for connection, _ in requests} == {1}

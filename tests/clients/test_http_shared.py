"""Small answers over connections that requests share: HTTP/2, and what a server may do with it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from yarl import URL

from nixcache_oci.clients.http import client, fresh, session
from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.curl_generation import MOST_CONNECTIONS
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.public_address import AddressInfo, open_any_socket
from nixcache_oci.clients.http.reply import Timeouts
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.clients.upstream.rules import ask
from nixcache_oci.errors import UpstreamConnectionError, UpstreamError
from tests.support import http2
from tests.support.http2 import Connection, Exchange, frame, http2_context, speaking
from tests.support.nginx import nginx_server
from tests.support.tls import Authority, make_authority
from tests.support.upstream_server import (
    HASH_PART,
    Asked,
    Talk,
    answering,
    asking,
    narinfo_text,
    saying,
    serve,
    talk,
    unreachable,
)

_MOST_BYTES: Final = 100_000
_BODY: Final = b"a small answer"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """Trusted as a user says."""
    made = make_authority(tmp_path)
    monkeypatch.setenv("NIX_SSL_CERT_FILE", str(made.file))
    session._read.cache_clear()
    yield made
    session._read.cache_clear()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that sockets were opened for."""
    addresses: list[object] = []

    def note(info: AddressInfo) -> object:
        addresses.append(info[4])
        return open_any_socket(info)

    monkeypatch.setattr(client, "open_any_socket", note)
    return addresses


@asynccontextmanager
async def asker(
    *, connect_seconds: float = 5.0, connect_seconds_in_all: float = 30.0, idle_seconds: float = 60.0
) -> AsyncIterator[HttpClient]:
    http = HttpClient(
        Timeouts(5, 5, 5, 30),
        connect_seconds=connect_seconds,
        connect_seconds_in_all=connect_seconds_in_all,
        idle_seconds=idle_seconds,
    )
    try:
        yield http
    finally:
        await http.close()


async def fetch(http: HttpClient, url: str, seconds: float = 5.0) -> bytes:
    limits = Timeouts(seconds, seconds, seconds, 30)
    place = parse_upstream(str(URL(url).origin()))
    reply = await ask(http, place, "GET", URL(url, encoded=True), limits, headers={}, most_bytes=_MOST_BYTES)
    try:
        return b"".join([chunk async for chunk in reply.chunks()])
    finally:
        reply.close()


@asynccontextmanager
async def speaks(
    authority: Authority, exchange: Exchange
) -> AsyncIterator[tuple[str, list[tuple[int, int]]]]:
    """Run a server by hand; gives its URL, and the connection and stream of each request."""
    requests: list[tuple[int, int]] = []
    tls = http2_context(authority.chain)
    async with talk(speaking(exchange, requests=requests), tls=tls) as url:
        yield f"{url}/x", requests


@pytest.mark.parametrize("is_2", [True, False])
async def test_bursts_share_connections(
    authority: Authority, tmp_path: Path, opened: list[object], *, is_2: bool
) -> None:
    """One, where the server speaks HTTP/2, from the first burst on; else each is kept for the next burst."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").write_bytes(_BODY)
    listen = f"listen {{address}} ssl{' http2' if is_2 else ''}; root {tmp_path / 'root'};"
    server = f"{listen} ssl_certificate {authority.chain}; ssl_certificate_key {authority.chain};"
    async with nginx_server(tmp_path / "nginx", server) as address, asker() as http:
        for _ in range(3):
            bodies = await asyncio.gather(*(fetch(http, f"https://{address}/x") for _ in range(96)))
            assert set(bodies) == {_BODY}
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
        return web.Response(body=_BODY)

    async with serve(answer, tls=authority.server) as url, asker() as http:
        assert await asyncio.gather(*(fetch(http, f"{url}/x") for _ in range(3))) == [_BODY] * 3


async def test_waiting_for_a_connection_is_no_slow_connection(authority: Authority) -> None:
    """Those that others use are waited for, for as long as these are answered."""
    handler = answering(body=_BODY, seconds=0.3)
    async with serve(handler, tls=authority.server) as url, asker(connect_seconds_in_all=0.5) as http:
        await fetch(http, f"{url}/x")
        many = [fetch(http, f"{url}/x") for _ in range(2 * MOST_CONNECTIONS + 1)]
        assert set(await asyncio.gather(*many)) == {_BODY}


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


async def test_a_path_arrives_as_it_is(authority: Authority) -> None:
    """Byte for byte: a signature covers it. No proxy of the environment is taken for this machine."""
    asked: list[Asked] = []
    path = "/a/../b//%2e%2f%7E/c?x=%2F&&y=1+2&z="
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("https_proxy", "http://127.0.0.1:1")
        patch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        async with serve(answering(asked=asked), tls=authority.server) as url, asker() as http:
            await fetch(http, f"{url}{path}")
    assert asked[0].path == path
    assert {name: asked[0].headers[name] for name in ("Accept-Encoding", "User-Agent")} == session.HEADERS
    assert "Authorization" not in asked[0].headers
    assert "Cookie" not in asked[0].headers


_HEAD: Final = b"HTTP/1.1 200 OK\r\n"
_CHUNKED: Final = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (saying(_HEAD + b"\r\n", again=[b"x" * 10_000]), f"over {_MOST_BYTES} bytes"),
        (saying(_CHUNKED + b"0\r\n", again=[b"X: y\r\n" * 1000]), "does not speak HTTP"),
        (saying(_HEAD, again=[b"X: " + b"y" * 1000 + b"\r\n"]), "the answer's head has over 65536 bytes"),
        (saying(again=[b"HTTP/1.1 103 Early Hints\r\n\r\n"]), "more than 8 interim answers"),
        (saying(b"220 mail ESMTP\r\n", again=[0.1]), "does not speak HTTP"),
        (saying(_CHUNKED + b"5\r\nab"), "the connection broke before the end"),
        (saying(_HEAD + b"Content-Length: 9\r\n\r\nab"), "the connection broke before the end"),
        (saying(_HEAD + b"Content-Le"), "the connection was closed before an answer came"),
        (saying(again=[0.1, b""]), "no answer"),
        (saying(_CHUNKED + b"2\r\nab\r\n", again=[0.1, b""]), "stalled"),
        (saying(_CHUNKED + b"2;", again=[0.05, b"x" * 10]), "stalled"),
        (saying(_HEAD + b"\r\n", again=[0.05, b"x"]), "the answer comes too slowly"),
    ],
)
async def test_what_a_server_sends_is_bounded(authority: Authority, script: Talk, reason: str) -> None:
    """In size, and in time, as everywhere: the transport is no way around a rule."""
    async with talk(script, tls=authority.server) as url, asker() as http:
        with pytest.raises((HttpError, UpstreamError), match=reason):
            await fetch(http, f"{url}/x", 0.5)


async def test_whoever_gives_up_ends_the_request(authority: Authority) -> None:
    """Its connection ends as well, and nothing is left to answer."""
    reached, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        await reader.read()
        ended.set()

    async with talk(silent, tls=authority.server) as url, asker() as http:
        task = asyncio.create_task(fetch(http, f"{url}/x"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ended.wait()


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
    async with serve(answering(body=_BODY), tls=tls) as url, asker(connect_seconds=0.2) as http:
        named = url.replace("127.0.0.1", "localhost")
        assert await asyncio.gather(*(fetch(http, f"{named}/x") for _ in range(3))) == [_BODY] * 3
    assert names == ["localhost"]


@pytest.mark.parametrize("how", ["refused", "goaway", "hung up"])
async def test_what_was_not_begun_is_sent_again(authority: Authority, how: str) -> None:
    """A server that restarts ends connections that it does not answer on any more."""

    async def exchange(connection: Connection, stream: int) -> None:
        if connection.number > 1 or stream == 1:
            await connection.answer(stream, _BODY)
        elif how == "refused":
            await connection.send(frame(http2.RST_STREAM, 0, stream, http2.number(http2.REFUSED_STREAM)))
        elif how == "goaway":
            last = http2.number(stream - 2) + http2.number(http2.NO_ERROR)
            await connection.send(frame(http2.GOAWAY, 0, 0, last))
            connection.hang_up()
        else:
            connection.hang_up()

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        assert [await fetch(http, url) for _ in range(2)] == [_BODY] * 2
    assert [number for number, _ in requests] == [1, 1, 2]


@pytest.mark.parametrize("code", [http2.REFUSED_STREAM, http2.CANCEL])
async def test_a_server_that_always_refuses_is_not_asked_for_ever(authority: Authority, code: int) -> None:
    """It counts as a connection that broke."""

    async def exchange(connection: Connection, stream: int) -> None:
        await connection.send(frame(http2.RST_STREAM, 0, stream, http2.number(code)))

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        with pytest.raises(UpstreamError, match="closed before an answer") as raised:
            await fetch(http, url)
    assert isinstance(raised.value.__cause__, HttpError)
    assert raised.value.__cause__.is_connection
    assert len(requests) <= 10


async def test_a_small_head_may_not_unpack_to_a_large_one(authority: Authority) -> None:
    """Each byte of a HEADERS frame may stand for a field of 4 KB that came before."""
    literal = (
        b"\x40\x01x\x7f" + b"\x81\x1e" + b"y" * 4000
    )  # name "x", value of 4,000 bytes, is kept as number 62
    bomb = http2.OK + literal + b"\xbe" * 10_000

    async def exchange(connection: Connection, stream: int) -> None:
        await connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, bomb))

    async with speaks(authority, exchange) as (url, _), asker() as http:
        with pytest.raises(UpstreamError):
            await fetch(http, url)


@pytest.mark.parametrize("kind", [http2.PING, http2.SETTINGS, http2.CONTINUATION])
async def test_floods_of_frames_end_with_the_request(authority: Authority, kind: int) -> None:
    """They bring no answer nearer, and the event loop does other things meanwhile."""
    payload = {http2.PING: b"12345678", http2.SETTINGS: b"", http2.CONTINUATION: b"\x00\x01x\x01y"}[kind]

    async def exchange(connection: Connection, stream: int) -> None:
        about = stream if kind == http2.CONTINUATION else 0
        if about:
            await connection.send(frame(http2.HEADERS, 0, stream, http2.OK))
        while True:
            await connection.send(frame(kind, 0, about, payload) * 1000)

    async with speaks(authority, exchange) as (url, _), asker() as http:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        turning = asyncio.create_task(turn())
        with pytest.raises(UpstreamError):
            await fetch(http, url, 0.5)
        turning.cancel()


async def test_a_silent_connection_of_many_requests_is_left(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them share the one new connection that is tried, and later requests use it at once."""
    monkeypatch.setattr(fresh, "SILENT_SECONDS", 0.2)

    async def exchange(connection: Connection, stream: int) -> None:
        if connection.number > 1 or stream == 1:
            await connection.answer(stream, _BODY)

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
            await connection.answer(stream, _BODY)

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        await fetch(http, url)
        assert len(await asyncio.gather(fetch(http, url), fetch(http, url))) == 2
    assert len(requests) == 3


async def test_idle_connections_are_closed(authority: Authority) -> None:
    """After the client's idle seconds, whether or not another request comes."""
    ended = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HEAD + b"Content-Length: 0\r\n\r\n")
        await reader.read()
        ended.set()

    async with talk(once, tls=authority.server) as url, asker(idle_seconds=0.1) as http:
        await fetch(http, f"{url}/x")
        await ended.wait()


async def test_after_sleep_connections_are_new(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for those that nobody shares."""

    async def exchange(connection: Connection, stream: int) -> None:
        await connection.answer(stream, _BODY)

    async with speaks(authority, exchange) as (url, requests), asker() as http:
        await fetch(http, url)
        slept = time.time
        monkeypatch.setattr(time, "time", lambda: slept() + 60)
        await fetch(http, url)
    assert [number for number, _ in requests] == [1, 2]


async def test_what_a_public_server_names_must_be_public(authority: Authority) -> None:
    """A name that leads inside is refused where it is connected to."""

    async def lead(request: web.Request) -> web.Response:
        if request.host.startswith("127."):
            place = f"https://localhost.example.test:{request.url.port}/y"
            return web.Response(status=302, headers={"Location": place})
        return web.Response(body=_BODY)

    loop = asyncio.get_running_loop()
    find = loop.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "getaddrinfo", lambda _host, *rest, **more: find("127.0.0.2", *rest, **more))
        http = HttpClient(Timeouts(5, 5, 5, 30), is_public=lambda address: address == "127.0.0.1")
        async with serve(lead, tls=authority.server) as url:
            with pytest.raises(UpstreamError, match=r"the private address 127\.0\.0\.2 refused"):
                await fetch(http, f"{url}/x")
        await http.close()


async def test_what_a_client_streams_has_a_connection_of_its_own(
    authority: Authority, opened: list[object]
) -> None:
    """Its reader may be slow; narinfos, and what is fetched ahead, share theirs."""
    asked: list[object] = []
    peers: list[object] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.transport and request.transport.get_extra_info("peername"))
        return web.Response(body=narinfo_text() if request.path.endswith(".narinfo") else _BODY)

    async with serve(answer, tls=authority.server) as url, asking(url) as upstreams:
        narinfo = await upstreams.find(HASH_PART)
        assert narinfo is not None
        _, key, path = narinfo.url.split("/", 2)
        for ahead_bytes in (len(_BODY), None):
            async with upstreams.open_nar(key, path, ahead_bytes=ahead_bytes) as nar:
                assert b"".join([chunk async for chunk in nar.chunks]) == _BODY
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
        await connection.answer(stream, _BODY)

    async with speaks(authority, answer) as (url, requests), asker() as http:
        assert await asyncio.gather(*(fetch(http, url) for _ in range(10))) == [_BODY] * 10
    assert len(requests) == 10
    assert {connection for connection, _ in requests} == {1}


async def test_nothing_is_sent_after_closing(authority: Authority) -> None:
    """What is under way over a used connection ends, and is not sent again over a new one."""
    asked: asyncio.Queue[None] = asyncio.Queue()

    async def answer(connection: Connection, stream: int) -> None:
        if len(requests) == 1:
            await connection.answer(stream, _BODY)
        asked.put_nowait(None)

    async with speaks(authority, answer) as (url, requests):
        async with asker() as http:
            assert await fetch(http, url) == _BODY
            under_way = [asyncio.create_task(fetch(http, url)) for _ in range(6)]
            for _ in range(7):
                await asked.get()
        found = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(one, UpstreamError) for one in found)
        assert {connection for connection, _ in requests} == {1}


@pytest.mark.parametrize("field", ["HTTP/x: foo", "HTTP/1.1:"])
async def test_a_field_is_no_status_line(authority: Authority, field: str) -> None:
    """Whatever it is called."""
    head = f"HTTP/1.1 200 OK\r\n{field}\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()
    async with talk(saying(head + _BODY), tls=authority.server) as url, asker() as http:
        assert await fetch(http, f"{url}/x") == _BODY

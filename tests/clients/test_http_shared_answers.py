"""Small answers over connections that requests share: what a server may send, and where it may lead."""

import asyncio
from typing import Final

import pytest
from aiohttp import web

from nixcache_oci.clients.http import session
from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.reply import Timeouts
from nixcache_oci.errors import UpstreamError
from tests.support import http2
from tests.support.http2 import Connection, frame
from tests.support.small_answers import BODY, MOST_BYTES, asker, fetch, speaks
from tests.support.tls import Authority
from tests.support.upstream_server import (
    Asked,
    Talk,
    answering,
    saying,
    serve,
    talk,
)


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
        (saying(_HEAD + b"\r\n", again=[b"x" * 10_000]), f"over {MOST_BYTES} bytes"),
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


async def test_what_a_public_server_names_must_be_public(authority: Authority) -> None:
    """A name that leads inside is refused where it is connected to."""

    async def lead(request: web.Request) -> web.Response:
        if request.host.startswith("127."):
            place = f"https://localhost.example.test:{request.url.port}/y"
            return web.Response(status=302, headers={"Location": place})
        return web.Response(body=BODY)

    loop = asyncio.get_running_loop()
    find = loop.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "getaddrinfo", lambda _host, *rest, **more: find("127.0.0.2", *rest, **more))
        http = HttpClient(Timeouts(5, 5, 5, 30), is_public=lambda address: address == "127.0.0.1")
        async with serve(lead, tls=authority.server) as url:
            with pytest.raises(UpstreamError, match=r"the private address 127\.0\.0\.2 refused"):
                await fetch(http, f"{url}/x")
        await http.close()


@pytest.mark.parametrize("field", ["HTTP/x: foo", "HTTP/1.1:"])
async def test_a_field_is_no_status_line(authority: Authority, field: str) -> None:
    """Whatever it is called."""
    head = f"HTTP/1.1 200 OK\r\n{field}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    async with talk(saying(head + BODY), tls=authority.server) as url, asker() as http:
        assert await fetch(http, f"{url}/x") == BODY

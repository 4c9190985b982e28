"""Asks servers for small answers over TLS, whose connections requests share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.reply import Timeouts
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.clients.upstream.rules import ask
from tests.support.http2 import Exchange, http2_context, speaking
from tests.support.tls import Authority
from tests.support.upstream_server import talk

MOST_BYTES: Final = 100_000
BODY: Final = b"a small answer"


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
    reply = await ask(http, place, "GET", URL(url, encoded=True), limits, headers={}, most_bytes=MOST_BYTES)
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

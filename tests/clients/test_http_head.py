"""What may come before an answer's body: counted as a table, and cut at the first byte too many."""

import asyncio

import pytest

from nixcache_oci.clients.http.session import MOST_HEAD_BYTES, MOST_INTERIM_ANSWERS, HeadError, HeadMeter
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import RegistryError, UpstreamError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import opened
from tests.clients.test_http_minimum_rate import give_up_on_registry
from tests.support.upstream_server import HASH_PART, answering, asking, narinfo_text, saying, serve, talk

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
WIDE = b"HTTP/1.1 103 x\r\n" + b"X: " + b"a" * 8_000 + b"\r\n\r\n"

ALLOWED = {
    "at once": FINAL,
    "behind interim answers": HINT * MOST_INTERIM_ANSWERS + FINAL,
    "lines without a CR": b"HTTP/1.1 100 x\n\nHTTP/1.1 200 x\n\n",
    "an empty line before": b"\r\n" + FINAL,
    "an upgrade, which is final": b"HTTP/1.1 101 x\r\n\r\n",
    "as wide as it may be": b"HTTP/1.1 200 OK\r\nX: " + b"a" * (MOST_HEAD_BYTES - 24) + b"\r\n\r\n",
}
REFUSED = {
    "one interim answer too many": HINT * (MOST_INTERIM_ANSWERS + 1) + FINAL,
    "interim answers without end": HINT * 5_000,
    "wide ones": WIDE * 9,
    "a head of a megabyte": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000,
    "one that never ends": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    "empty lines": b"\r\n" * 50_000,
    "what only looks final": b"HTTP/1.1 2000 OK\r\n\r\n" * 10,
    "no HTTP": b"220 smtp.example ESMTP\r\n\r\n" * 10,
}


def feed(head: bytes, size: int) -> list[bool]:
    meter = HeadMeter()
    return [meter.feed(head[at : at + size]) for at in range(0, len(head), size)]


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("head", ALLOWED.values(), ids=ALLOWED)
def test_a_head_ends(head: bytes, size: int) -> None:
    """In whatever pieces it comes, it ends with its last byte and not before."""
    told = feed(head, size)
    assert told == [False] * (len(told) - 1) + [True]


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED)
def test_what_comes_before_a_head_is_bounded(head: bytes, size: int) -> None:
    """At most eight interim answers and 64 KiB, in whatever pieces they come."""
    with pytest.raises(HeadError):
        feed(head, size)


@pytest.mark.parametrize("piece", [HINT * 1_500, WIDE * 8, b"\r\n" * 30_000], ids=["many", "wide", "empty"])
async def test_interim_answers_without_end_are_cut_at_once(piece: bytes) -> None:
    """Nobody waits for the flood to end: not the request, and not the others in this event loop."""
    sent: list[int] = []
    async with talk(saying(again=[piece], sent=sent)) as url, asking(url, answer_seconds=600) as upstreams:
        with pytest.raises(UpstreamError, match=r"interim answers|head has over|not speak HTTP"):
            await asyncio.wait_for(upstreams.find(HASH_PART), 60)
        assert upstreams.health()[0].failures == 1
    assert sum(sent) < 32 * 1024 * 1024  # what fits into the buffers on the way


async def test_a_registry_may_not_flood_either() -> None:
    """It is told as the registry's failure, in one line."""
    async with (
        talk(saying(again=[HINT * 1_500])) as url,
        opened(url.removeprefix("http://"), None, patience=0.1, stall=30) as registry,
    ):
        with pytest.raises(RegistryError, match="more than 8 interim answers") as raised:
            await registry.list_tags()
    assert raised.value.is_temporary


async def test_a_connection_serves_again_after_interim_answers() -> None:
    """The guard leaves when the head has come: a next answer on the same connection is guarded anew."""
    connections = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        body = narinfo_text().encode()
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(HINT * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    async with talk(converse) as url, asking(url) as upstreams:
        for _ in range(6):  # with eight interim answers for all of them, the third would be too much
            assert await upstreams.find(HASH_PART) is not None
    assert connections == 1


@pytest.mark.parametrize("what", ["manifest", "tags", "blob"])
async def test_a_registrys_head_may_not_drip(what: str) -> None:
    """Each byte is a sign of life, and all of them together are no answer."""
    await give_up_on_registry("a head", what)


async def test_the_answer_to_an_upload_may_not_drip_either() -> None:
    """It may take as long as storing so much takes, and not as long as bytes of it come."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if not head.startswith(b"PUT"):
                told = b"202 x\r\nLocation: /session" if head.startswith(b"POST") else b"404 x"
                writer.write(b"HTTP/1.1 " + told + b"\r\nContent-Length: 0\r\n\r\n")
                continue
            await reader.readexactly(7)
            writer.write(b"HTTP/1.1 201 Created\r\nX: ")
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with (
        talk(converse) as url,
        opened(url.removeprefix("http://"), None, push=True, patience=0, stall=0.2) as registry,
    ):
        with pytest.raises(RegistryError, match="stalled"):
            await registry.push_blob(Digest.of(b"content"), b"content")


async def test_redirects_share_one_limit() -> None:
    """A circle of slow answers takes no longer than one of them may."""
    around = answering(status=307, headers={"Location": "/again"}, seconds=0.2)
    async with serve(around) as url:
        async with opened(url.removeprefix("http://"), None, patience=0.1, stall=0.5) as registry:
            with pytest.raises(RegistryError, match="no answer within"):
                await registry.get_manifest("a")
        async with asking(url, nar_seconds=0.5) as upstreams:
            with pytest.raises(UpstreamError, match="no answer within"):
                async with upstreams.open_nar(parse_upstream(url).key, "nar/x.nar"):
                    pass

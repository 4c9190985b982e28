"""Bodies that drip: given up by their rate, as a table and with servers that send byte after byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import pytest

from nixcache_oci.clients.http.errors import SlowBodyError
from nixcache_oci.clients.http.reply import MinimumRate
from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.clients.resume import open_resuming
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.clients.upstream.nar import NarStream
from nixcache_oci.errors import RegistryError, UpstreamError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import opened
from tests.support.slow_repository import SlowRepository
from tests.support.upstream_server import Talk, asking, talk

_DIGEST: Final = Digest.of(b"whatever")
_LENGTH: Final = 1_000_000


@pytest.mark.parametrize(
    ("waits", "is_slow"),
    [
        ([(1, 5.0)] * 5, False),
        ([(1, 5.0)] * 6, True),
        ([(1, 29.0)] * 2, True),
        ([(40_000, 29.0), (1, 1.0)] * 9, False),
        ([(30_720, 30.0)] * 9, False),
        ([(30_719, 30.0)], True),
        ([(10, 0.0)] * 9_999, False),
        ([(30_720, 30.0), (1, 30.0)], True),
    ],
)
def test_each_window_of_waiting_brings_bytes(waits: list[tuple[int, float]], *, is_slow: bool) -> None:
    """1 KiB for each second waited, taken over 30 s; time in which nobody waits does not count."""
    rate = MinimumRate(30, 1024)
    if is_slow:
        with pytest.raises(SlowBodyError):  # noqa: PT012 - one of them is the last straw
            for count, waited in waits:
                rate.add(count, waited)
    else:
        for count, waited in waits:
            rate.add(count, waited)


async def read_all(opening: AbstractAsyncContextManager[BlobStream | NarStream]) -> bytes:
    async with opening as stream:
        return b"".join([chunk async for chunk in stream.chunks])


def dripping() -> Talk:
    """Answer everything with a head, and a body of which a byte comes now and then."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % _LENGTH)
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    return converse


async def test_a_registrys_document_may_not_drip() -> None:
    """A refresh that waits for one would never end, and nothing would show."""
    async with (
        talk(dripping()) as url,
        opened(url.removeprefix("http://"), None, patience=0.1, stall=0.3) as registry,
    ):
        for asking_for in (registry.get_manifest("a"), registry.list_tags()):
            with pytest.raises(RegistryError, match="comes too slowly"):
                await asking_for


async def test_a_registrys_blob_may_not_drip() -> None:
    """As it is temporary, it is resumed where it stopped."""
    async with (
        talk(dripping()) as url,
        opened(url.removeprefix("http://"), None, patience=0.1, stall=0.3) as registry,
    ):
        with pytest.raises(RegistryError, match="comes too slowly") as raised:
            await read_all(registry.open_blob(_DIGEST))
    assert raised.value.is_temporary


async def test_an_upstreams_nar_may_not_drip() -> None:
    """It would hold a client, and a connection, for weeks."""
    async with talk(dripping()) as url, asking(url, stall_seconds=0.3) as upstreams:
        with pytest.raises(UpstreamError, match="comes too slowly"):
            await read_all(upstreams.open_nar(parse_upstream(url).key, "nar/x.nar"))


_FRAMING: Final = {
    "an extension of a chunk": (b"1;", b"a=b;"),
    "the size of a chunk": (b"", b"0"),
    "trailers": (b"0\r\nX: ", b"y"),
}


def framing(kind: str) -> Talk:
    """Answer everything with chunks of which no byte of content ever comes."""
    beginning, piece = _FRAMING[kind]

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + beginning)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return converse


@pytest.mark.parametrize("kind", _FRAMING)
async def test_framing_is_no_progress(kind: str) -> None:
    """Chunk sizes, their extensions and trailers have no end of their own, and bring nothing."""
    async with (
        talk(framing(kind)) as url,
        opened(url.removeprefix("http://"), None, patience=0.1, stall=0.3) as registry,
        asking(url, nar_seconds=0.3, stall_seconds=0.2) as upstreams,
    ):
        for asking_for in (registry.get_manifest("a"), registry.list_tags()):
            with pytest.raises(RegistryError, match="stood still"):
                await asyncio.wait_for(asking_for, 10)
        reading = read_all(upstreams.open_nar(parse_upstream(url).key, "nar/x.nar"))
        with pytest.raises(UpstreamError, match="no answer in time"):
            await asyncio.wait_for(reading, 10)


async def test_an_upstreams_nar_that_is_resumed_may_not_drip_either() -> None:
    """A byte over each connection is progress, and yet it ends."""
    connections = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        fields = b'Accept-Ranges: bytes\r\nETag: "1"\r\n'
        if b"\r\nrange: bytes=" in head:
            start = int(head.partition(b"range: bytes=")[2].partition(b"-")[0])
            writer.write(
                b"HTTP/1.1 206 x\r\n%sContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n"
                % (fields, start, _LENGTH - 1, _LENGTH, _LENGTH - start)
            )
        else:
            writer.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (fields, _LENGTH))
        await asyncio.sleep(0.05)
        writer.write(b"a")

    async with talk(converse) as url, asking(url, stall_seconds=0.2, resume_pause_seconds=0) as upstreams:
        with pytest.raises(UpstreamError, match="comes too slowly"):
            await read_all(upstreams.open_nar(parse_upstream(url).key, "nar/x.nar"))
    assert 3 < connections < 40


async def test_a_nars_first_byte_may_take_longer_than_the_others() -> None:
    """A cache may have to fetch or build it first; then it stands still no longer than a line may."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.3)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await asyncio.sleep(0.3)
        writer.write(b"whole")

    async with talk(converse) as url, asking(url, stall_seconds=0.1, nar_seconds=30) as upstreams:
        assert await read_all(upstreams.open_nar(parse_upstream(url).key, "nar/x.nar")) == b"whole"


async def test_a_blob_that_breaks_off_again_and_again_may_not_drip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte over each connection is progress, and yet it ends: by the rate of all of them together."""
    monkeypatch.setattr("nixcache_oci.clients.resume._WINDOW_SECONDS", 0.2)
    repository = _Dripping()
    with pytest.raises(RegistryError, match="comes too slowly") as raised:
        await read_all(open_resuming(repository, repository.digest, sleep=_no_sleep))
    assert not raised.value.is_temporary
    assert 3 < repository.streams < 40


class _Dripping(SlowRepository):
    """Gives a byte a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = self.add(bytes(_LENGTH))
        self.streams = 0

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        self.streams += 1

        async def chunks() -> AsyncIterator[bytes]:
            await asyncio.sleep(0.05)
            yield self.blobs[digest][start : start + 1]
            raise RegistryError("cut", is_temporary=True)

        yield BlobStream(_LENGTH, start, _LENGTH if end is None else end, chunks())


async def _no_sleep(_seconds: float) -> None:
    """Nobody waits in a test."""

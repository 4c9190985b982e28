"""Bodies that drip: given up by their rate, as a table and with servers that send byte after byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from itertools import product
from typing import Final

import pytest

from nixcache_oci.clients.http.reply import MinimumRate
from nixcache_oci.clients.http.translation import SlowBodyError
from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.clients.resume import open_resuming
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.clients.upstream.nar_stream import NarStream
from nixcache_oci.errors import RegistryError, UpstreamError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import opened
from tests.support.interleaving import no_sleep
from tests.support.slow_repository import SlowRepository
from tests.support.upstream_server import HASH_PART, Talk, asking, saying, talk

_DIGEST: Final = Digest.of(b"whatever")
_LENGTH: Final = 1_000_000
_SLOW: Final = pytest.raises(SlowBodyError)


@pytest.mark.parametrize(
    ("waits", "ends_in"),
    [
        ([(1, 5.0)] * 5, nullcontext()),
        ([(1, 5.0)] * 6, _SLOW),
        ([(1, 29.0)] * 2, _SLOW),
        ([(40_000, 29.0), (1, 1.0)] * 9, nullcontext()),
        ([(30_720, 30.0)] * 9, nullcontext()),
        ([(30_719, 30.0)], _SLOW),
        ([(10, 0.0)] * 9_999, nullcontext()),
        ([(30_720, 30.0), (1, 30.0)], _SLOW),
    ],
)
def test_each_window_of_waiting_brings_bytes(
    waits: list[tuple[int, float]], ends_in: AbstractContextManager[object]
) -> None:
    """1 KiB for each second waited, taken over 30 s; time in which nobody waits does not count."""
    rate = MinimumRate(30, 1024)
    with ends_in:
        for count, waited in waits:
            rate.add(count, waited)


async def read_all(opening: AbstractAsyncContextManager[BlobStream | NarStream]) -> bytes:
    async with opening as stream:
        return b"".join([chunk async for chunk in stream.chunks])


_BODY: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % _LENGTH
_CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# What comes at first, and then again and again.
_OF_BODIES: Final = {
    "a body": (_BODY, b"a"),
    "nothing of a body": (_BODY, b""),
    "no more of a body": (_BODY + b"beginning", b""),
}
_FRAMING: Final = {
    "an extension of a chunk": (_CHUNKED + b"1;", b"a=b;"),
    "the size of a chunk": (_CHUNKED, b"0"),
    "trailers": (_CHUNKED + b"0\r\nX: ", b"y"),
}
_ANSWERS: Final = {
    "nothing": (b"", b""),
    "a head": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    **_OF_BODIES,
    **_FRAMING,
}
# Which of them it is, a busy machine may decide.
_GIVEN_UP: Final = "no answer within|no answer in time|stalled|comes too slowly"


def _dripping(answer: str) -> Talk:
    beginning, piece = _ANSWERS[answer]
    return saying(beginning, again=[piece, 0.02])


async def give_up_on_registry(answer: str, what: str) -> None:
    """Ask a registry that answers so, and find that it ends, and may be asked again."""
    async with (
        talk(_dripping(answer)) as url,
        opened(url.removeprefix("http://"), None, patience=0, stall=0.1) as registry,
    ):
        reading: dict[str, Callable[[], Awaitable[object]]] = {
            "manifest": lambda: registry.get_manifest("a"),
            "tags": registry.list_tags,
            "blob": lambda: read_all(registry.open_blob(_DIGEST)),
        }
        with pytest.raises(RegistryError, match=_GIVEN_UP) as raised:
            await asyncio.wait_for(reading[what](), 20)
    assert raised.value.is_temporary  # what is so is resumed where it stopped


@pytest.mark.parametrize("what", ["manifest", "tags"])
@pytest.mark.parametrize("answer", ["nothing", *_OF_BODIES])
async def test_a_registrys_document_may_not_drip(answer: str, what: str) -> None:
    """A refresh that waits for one would never end, and nothing would show."""
    await give_up_on_registry(answer, what)


@pytest.mark.parametrize("answer", ["nothing", *_OF_BODIES])
async def test_a_registrys_blob_may_not_drip(answer: str) -> None:
    """As it is temporary, it is resumed where it stopped."""
    await give_up_on_registry(answer, "blob")


@pytest.mark.parametrize("what", ["manifest", "tags"])
@pytest.mark.parametrize("answer", _FRAMING)
async def test_framing_is_no_progress(answer: str, what: str) -> None:
    """Chunk sizes, their extensions and trailers have no end of their own, and bring nothing."""
    await give_up_on_registry(answer, what)


@pytest.mark.parametrize(
    ("answer", "what"),
    [*product(_ANSWERS, ["narinfo", "nar"]), *product(["nothing", "a head"], ["head of a nar"])],
)
async def test_an_upstreams_answer_may_not_drip(answer: str, what: str) -> None:
    """It would hold a client, and a connection, for weeks; for a narinfo, the limit is on the whole of it."""
    async with (
        talk(_dripping(answer)) as url,
        asking(url, answer_seconds=0.2, nar_seconds=0.2, stall_seconds=0.1) as upstreams,
    ):
        key = parse_upstream(url).key
        reading: dict[str, Callable[[], Awaitable[object]]] = {
            "narinfo": lambda: upstreams.find(HASH_PART),
            "nar": lambda: read_all(upstreams.open_nar(key, "nar/x.nar")),
            "head of a nar": lambda: upstreams.head_nar(key, "nar/x.nar"),
        }
        with pytest.raises(UpstreamError, match=_GIVEN_UP):
            await asyncio.wait_for(reading[what](), 20)
        assert upstreams.health()[0].state == "closed"


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
    slow = saying(0.3, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 0.3, b"whole")
    async with talk(slow) as url, asking(url, stall_seconds=0.1, nar_seconds=30) as upstreams:
        assert await read_all(upstreams.open_nar(parse_upstream(url).key, "nar/x.nar")) == b"whole"


class _Dripping(SlowRepository):
    """Gives a byte a stream."""

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        self.opened.append(digest)

        async def chunks() -> AsyncIterator[bytes]:
            await asyncio.sleep(0.05)
            yield self.blobs[digest][start : start + 1]
            raise RegistryError("cut", is_temporary=True)

        yield BlobStream(_LENGTH, start, _LENGTH if end is None else end, chunks())


async def test_a_blob_that_breaks_off_again_and_again_may_not_drip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte over each connection is progress, and yet it ends: by the rate of all of them together."""
    monkeypatch.setattr("nixcache_oci.clients.resume._WINDOW_SECONDS", 0.2)
    repository = _Dripping()
    digest = repository.add(bytes(_LENGTH))
    with pytest.raises(RegistryError, match="comes too slowly") as raised:
        await read_all(open_resuming(repository, digest, sleep=no_sleep))
    assert not raised.value.is_temporary
    assert 3 < len(repository.opened) < 40

"""A verified stream: no wrong byte reaches a client as a whole answer."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import aclosing
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.errors import DigestError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.verified import Quarantine, verified

BIG = bytes(range(256)) * 1024  # hashed on a thread


def stream(chunks: Iterable[bytes]) -> BlobStream:
    async def arrive() -> AsyncIterator[bytes]:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk

    return stream_of(arrive())


def stream_of(chunks: AsyncIterator[bytes]) -> BlobStream:
    return BlobStream(size=0, start=0, end=0, chunks=chunks)


async def read(blob: BlobStream, digest: Digest, quarantine: Quarantine) -> tuple[list[bytes], bool]:
    """Read to the end; tells what came, and whether the end was a good one."""
    passed: list[bytes] = []
    try:
        async with aclosing(verified(blob, digest, quarantine)) as pieces:
            async for piece in pieces:
                passed.append(piece)  # noqa: PERF401  # what came before an error counts, too
    except DigestError:
        return passed, False
    return passed, True


@given(st.lists(st.sampled_from([b"", b"a", b"bc", BIG]), max_size=6))
async def test_what_is_right_passes_whole(chunks: list[bytes]) -> None:
    """However it is cut into pieces, empty ones among them."""
    content = b"".join(chunks)
    passed, is_good = await read(stream(chunks), Digest.of(content), Quarantine())
    assert is_good
    assert b"".join(passed) == content


@given(st.lists(st.sampled_from([b"a", b"bc", BIG]), min_size=1, max_size=6))
async def test_of_what_is_wrong_the_end_is_missing(chunks: list[bytes]) -> None:
    """At least the last piece stays here, so that the client cannot take it for the whole."""
    quarantine = Quarantine()
    digest = Digest.of(b"something else")
    content = b"".join(chunks)
    passed, is_good = await read(stream(chunks), digest, quarantine)
    assert not is_good
    assert len(b"".join(passed)) < len(content)
    assert content.startswith(b"".join(passed))
    assert digest in quarantine


async def test_nothing_is_held_back_longer_than_for_the_next_piece() -> None:
    """A client gets each piece when the next one is here: memory is two of them, and no stall is added."""
    arriving: asyncio.Queue[bytes] = asyncio.Queue()

    async def arrive() -> AsyncIterator[bytes]:
        while chunk := await arriving.get():
            yield chunk

    content = b"one" + BIG + b"three"
    async with aclosing(verified(stream_of(arrive()), Digest.of(content), Quarantine())) as pieces:
        arriving.put_nowait(b"one")
        arriving.put_nowait(BIG)
        assert await anext(pieces) == b"one"
        arriving.put_nowait(b"three")
        assert await anext(pieces) == BIG
        arriving.put_nowait(b"")
        assert await anext(pieces) == b"three"
        assert await anext(pieces, None) is None


async def test_a_consumer_that_goes_away_while_a_piece_is_hashed() -> None:
    """It ends quietly: no error, no task and no thread is left behind; and the blob is not accused."""
    quarantine = Quarantine()
    digest = Digest.of(BIG * 3)
    for _ in range(20):
        async with aclosing(verified(stream([BIG, BIG, BIG]), digest, quarantine)) as pieces:
            assert await anext(pieces) == BIG
    assert digest not in quarantine
    assert len(asyncio.all_tasks()) == 1


async def test_a_consumer_that_is_cancelled_while_a_piece_is_hashed() -> None:
    """As when the proxy stops with transfers running."""
    quarantine = Quarantine()
    digest = Digest.of(BIG * 3)

    async def consume() -> None:
        async with aclosing(verified(stream([BIG, BIG, BIG]), digest, quarantine)) as pieces:
            async for _ in pieces:
                await asyncio.sleep(0)

    for turns in range(8):
        await cancel_after(turns, consume())
    assert digest not in quarantine


async def cancel_after(turns: int, consuming: Coroutine[Any, Any, object]) -> None:
    """Cancel a consumer that has had so many turns of the event loop."""
    task = asyncio.create_task(consuming)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


class SlowHasher:
    """Hashes when it may."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self.may = Event()

    def update(self, piece: bytes) -> None:
        assert self.may.wait(10)
        self._hasher.update(piece)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def slow_down(monkeypatch: pytest.MonkeyPatch) -> SlowHasher:
    hasher = SlowHasher()
    monkeypatch.setattr(hashlib, "sha256", lambda: hasher)
    return hasher


async def test_what_is_not_hashed_yet_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that is busy with something else costs speed, and no memory: 1 MiB and a piece are held."""
    content = [BIG] * 40
    digest = Digest.of(b"".join(content))
    hasher = slow_down(monkeypatch)
    taken = 0

    async def arrive() -> AsyncIterator[bytes]:
        nonlocal taken
        for chunk in content:
            taken += len(chunk)
            yield chunk

    reading = asyncio.create_task(read(stream_of(arrive()), digest, Quarantine()))
    await asyncio.wait([reading], timeout=0.2)
    assert not reading.done()
    assert taken == 2**20 + len(BIG)
    hasher.may.set()
    passed, is_good = await reading
    assert is_good
    assert passed == content


async def test_who_gives_up_while_it_waits_for_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that is behind ends by itself, and has nobody to wake."""
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    digest = Digest.of(b"")
    hasher = slow_down(monkeypatch)
    reading = asyncio.create_task(read(stream([BIG] * 40), digest, Quarantine()))
    await asyncio.wait([reading], timeout=0.05)
    reading.cancel()
    await asyncio.wait([reading])
    hasher.may.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)
    assert reading.cancelled()
    assert not troubles
    assert len(asyncio.all_tasks()) == 1

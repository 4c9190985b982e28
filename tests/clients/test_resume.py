"""Reading on where a connection broke."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.clients.resume import (
    ATTEMPTS_WITHOUT_PROGRESS,
    has_blob,
    open_resuming,
    probe_blob,
    read_blob,
)
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.interleaving import no_sleep
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.slow_repository import SlowRepository

CONTENT = bytes(range(256)) * 10


class BreakingRepository(SlowRepository):
    """Breaks every stream after so many bytes.

    Attributes:
        plan: bytes that each stream gives before it breaks, in order; then they are whole.
        starts: where each stream was opened.
        open_now: streams that are not closed yet.
        is_temporary: what the breaking is called.
    """

    def __init__(self, *plan: int) -> None:
        super().__init__()
        self.plan = list(plan)
        self.starts: list[int] = []
        self.open_now = 0
        self.is_temporary = True
        self.digest = self.add(CONTENT)

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        if digest not in self.blobs:
            raise NotFoundError(f"no blob {digest}")
        content = self.blobs[digest]
        stop = len(content) if end is None else end
        allowed = self.plan.pop(0) if self.plan else None
        self.starts.append(start)

        async def chunks() -> AsyncIterator[bytes]:
            limit = stop if allowed is None else min(stop, start + allowed)
            for at in range(start, limit, 100):
                yield content[at : min(at + 100, limit)]
            if limit < stop:
                raise RegistryError("cut", is_temporary=self.is_temporary)

        self.open_now += 1
        try:
            yield BlobStream(len(content), start, stop, chunks())
        finally:
            self.open_now -= 1


async def read(repository: BreakingRepository, start: int = 0, end: int | None = None) -> bytes:
    async with open_resuming(repository, repository.digest, start, end, sleep=no_sleep) as blob:
        return b"".join([chunk async for chunk in blob.chunks])


@pytest.mark.parametrize(("start", "end"), [(0, None), (300, None), (300, 2000)])
async def test_it_goes_on_from_where_it_stopped(start: int, end: int | None) -> None:
    """Every byte once, in order, and only what is missing is asked for."""
    repository = BreakingRepository(250, 0, 1, 500)
    assert await read(repository, start, end) == CONTENT[start:end]
    assert repository.starts == [start + offset for offset in (0, 250, 250, 251, 751)]
    assert repository.open_now == 0


async def test_progress_is_what_bounds_it() -> None:
    """A line that breaks but gives something each time is slow, not broken: only fruitless attempts count."""
    fruitless = [0] * (ATTEMPTS_WITHOUT_PROGRESS - 1)
    for plan in ([1] * 100, [100, *fruitless, 100, *fruitless]):
        assert await read(BreakingRepository(*plan)) == CONTENT
    for plan, starts in (([0] * 100, 0), ([100, *fruitless, 0], 1)):
        stuck = BreakingRepository(*plan)
        with pytest.raises(RegistryError):
            await read(stuck)
        assert len(stuck.starts) == starts + ATTEMPTS_WITHOUT_PROGRESS
        assert stuck.open_now == 0


async def test_a_blob_of_another_size_is_another_blob() -> None:
    """Its bytes must not be put behind those of the first."""
    repository = BreakingRepository(100)
    async with open_resuming(repository, repository.digest, sleep=no_sleep) as blob:
        repository.blobs[repository.digest] = CONTENT * 2
        with pytest.raises(RegistryError, match="bytes now"):
            _ = [chunk async for chunk in blob.chunks]
    assert repository.open_now == 0


async def test_what_is_final_is_not_tried_again() -> None:
    """Denied, gone meanwhile, or never there: then before anything is promised to a client."""
    denied = BreakingRepository(100)
    denied.is_temporary = False
    with pytest.raises(RegistryError):
        await read(denied)
    assert len(denied.starts) == 1
    gone = BreakingRepository(100)
    async with open_resuming(gone, gone.digest, sleep=no_sleep) as blob:
        gone.blobs.clear()
        with pytest.raises(NotFoundError):
            _ = [chunk async for chunk in blob.chunks]
    with pytest.raises(NotFoundError):
        async with open_resuming(gone, gone.digest, sleep=no_sleep):
            pass


async def test_cancelling_closes_everything() -> None:
    """A client that hangs up, and a shutdown in the middle of a wait."""
    repository = BreakingRepository(100, *([0] * 100))
    waiting = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        waiting.set()
        await asyncio.sleep(600)

    async def read_it() -> None:
        async with open_resuming(repository, repository.digest, sleep=sleep) as blob:
            _ = [chunk async for chunk in blob.chunks]

    async with open_resuming(repository, repository.digest, sleep=no_sleep) as left:
        await anext(left.chunks)
    assert repository.open_now == 0
    reading = asyncio.create_task(read_it())
    await waiting.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert repository.open_now == 0


async def test_a_whole_blob_is_checked() -> None:
    """Tables and packs are checked before use, and refused before they are read if they are too large."""
    repository = BreakingRepository(100)
    assert bytes(await read_blob(repository, repository.digest, len(CONTENT))) == CONTENT
    with pytest.raises(FormatError, match="limit"):
        await read_blob(repository, repository.digest, len(CONTENT) - 1)
    repository.blobs[repository.digest] = CONTENT[::-1]
    with pytest.raises(DigestError):
        await read_blob(repository, repository.digest, len(CONTENT))


async def test_a_blob_is_there_when_its_first_byte_is() -> None:
    """A break on the way is none of the blob's; three good heads without a byte are a blob that is lost."""
    repository = BreakingRepository(0, 0)
    assert await probe_blob(repository, repository.digest, sleep=no_sleep) == len(CONTENT)
    repository = BreakingRepository(0, 0, 0)
    with pytest.raises(DigestError, match="gives no byte"):
        await probe_blob(repository, repository.digest, sleep=no_sleep)
    assert repository.open_now == 0
    with pytest.raises(NotFoundError):
        await probe_blob(repository, Digest.of(b"another"), sleep=no_sleep)


@pytest.mark.parametrize(
    ("error", "is_known"),
    [
        (NotFoundError("blob unknown"), True),
        (RegistryError("the storage has no such key", status=404), True),
        (RegistryError("it cannot read its own file", status=500), True),
        (RegistryError("who are you?", status=401), False),
        (RegistryError("no answer"), False),
    ],
)
async def test_what_the_storage_lost_is_absent(error: RegistryError, *, is_known: bool) -> None:
    """However that is told; but where nobody could say, nobody says that it is absent."""

    async def refuse(step: str) -> None:
        if step.startswith("stat"):
            raise error

    repository = ModelRepository(ModelStorage(), refuse)
    blob = Descriptor("a/b", Digest.of(CONTENT), len(CONTENT))
    if is_known:
        assert not await has_blob(repository, blob)
        return
    with pytest.raises(RegistryError, match=str(error)):
        await has_blob(repository, blob)


async def test_a_blob_of_another_size_is_not_the_one() -> None:
    """A registry may hold the beginning of it."""
    repository = BreakingRepository()
    assert await has_blob(repository, Descriptor("a/b", repository.digest, len(CONTENT)))
    assert not await has_blob(repository, Descriptor("a/b", repository.digest, len(CONTENT) + 1))
    repository = BreakingRepository(0, 0, 0)
    assert not await has_blob(repository, Descriptor("a/b", repository.digest, len(CONTENT)))

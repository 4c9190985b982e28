"""The commit: nothing is visible before it is whole, and no writer loses another's work."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.commit import list_segments, push_segment
from nixcache_oci.cache.listing import read_listing, read_union
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.publish import CREATED

WRITERS = 4
SETTLING = 20  # turns of the event loop until everything that a writer does at once waits for its step
OLD = 2
LONG_AGO = CREATED - timedelta(days=100)
A_MONTH_AGO = CREATED - timedelta(days=30)


class CrashError(Exception):
    """The writer's machine is gone."""


def table(number: int, since: datetime = CREATED) -> Table:
    return Table(TableHeader(since + timedelta(minutes=number)), (), (store_object(str(number)).narinfo,))


async def write(repository: ModelRepository, number: int, pushed: list[Segment]) -> None:
    """One publisher, from its first blob to its index."""
    segment = await push_segment(repository, table(number), [])
    pushed.append(segment)
    await list_segments(repository, [segment], sleep=no_sleep)


async def move_watermark(repository: ModelRepository) -> None:
    """What gc does to the index: it lists what there is, and moves the watermark to before every writer."""
    union = await read_union(repository)
    content = replace(union.index, watermark=CREATED).render()
    await repository.push_manifest(INDEX_TAG, content, media_type.IMAGE_INDEX)


async def make_old_cache(storage: ModelStorage) -> list[Segment]:
    """Segments that only the index keeps: their tags are older than its watermark."""
    repository = ModelRepository(storage, nothing)
    old = [await push_segment(repository, table(number, LONG_AGO), []) for number in range(OLD)]
    index = CacheIndex(watermark=A_MONTH_AGO).with_segments(old)
    await repository.push_manifest(INDEX_TAG, index.render(), media_type.IMAGE_INDEX)
    return old


async def no_sleep(_seconds: float) -> None:
    """In a model, time is steps."""


class Writer:
    """A client that takes a step whenever it is told to; a crash ends it before its n-th step."""

    def __init__(
        self,
        storage: ModelStorage,
        crash_at: int | None,
        job: Callable[[ModelRepository], Awaitable[None]],
    ) -> None:
        self._turns = asyncio.Semaphore(0)
        self._ready = asyncio.Event()
        self._waiting = 0
        self._steps = 0
        self._crash_at = crash_at
        self._task = asyncio.ensure_future(job(ModelRepository(storage, self._before)))
        self._task.add_done_callback(lambda _: self._ready.set())

    async def _before(self, _step: str) -> None:
        self._waiting += 1
        self._ready.set()
        await self._turns.acquire()
        self._steps += 1
        if self._steps == self._crash_at:
            raise CrashError

    async def step(self) -> None:
        """Let it take its next step, if it has one."""
        await self._ready.wait()  # a thread may be at work for it
        for _ in range(SETTLING):
            await asyncio.sleep(0)
        if not self._task.done():
            self._waiting -= 1
            if not self._waiting:
                self._ready.clear()
            self._turns.release()

    async def end(self) -> None:
        """Take all steps that are left."""
        while not self._task.done():
            await self.step()
        with suppress(CrashError):
            await self._task


async def interleave(
    order: list[int], crashes: dict[int, int], *, is_new: bool
) -> tuple[ModelStorage, list[Segment]]:
    """Run writers, and one that moves the watermark, step by step in the given order, then to their ends."""
    storage = ModelStorage()
    expected = [] if is_new else await make_old_cache(storage)
    writers = [
        Writer(storage, crashes.get(number), partial(write, number=number, pushed=expected))
        for number in range(WRITERS)
    ]
    writers.append(Writer(storage, crashes.get(WRITERS), move_watermark))
    for number in order:
        await writers[number].step()
    for writer in writers:
        await writer.end()
    return storage, expected


async def nothing(_step: str) -> None:
    """No hook."""


@given(
    order=st.lists(st.integers(0, WRITERS), max_size=60),
    crashes=st.dictionaries(st.integers(0, WRITERS), st.integers(1, 12), max_size=WRITERS),
    is_new=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_interleaving_loses_a_segment(order: list[int], crashes: dict[int, int], *, is_new: bool) -> None:
    """Whoever pushed a segment's manifest is found, whatever indexes overwrote each other, whoever died."""

    async def check() -> None:
        storage, expected = await interleave(order, crashes, is_new=is_new)
        listing = await read_listing(ModelRepository(storage, nothing))
        assert {one.manifest for one in listing.segments} >= {one.manifest for one in expected}
        # And a later writer lists them all.
        await write(ModelRepository(storage, nothing), WRITERS, expected)
        storage.tags = {tag: at for tag, at in storage.tags.items() if tag == INDEX_TAG}
        listed = (await read_listing(ModelRepository(storage, nothing))).segments
        assert {one.manifest for one in listed} >= {one.manifest for one in expected}

    asyncio.run(check())


def test_blobs_come_before_what_names_them() -> None:
    """Killed anywhere, the cache is as before: table, config, manifest under its tag, then the index."""
    steps: list[str] = []

    async def note(step: str) -> None:
        steps.append(step)

    asyncio.run(write(ModelRepository(ModelStorage(), note), 1, []))
    pushes = [step.split()[1:3] for step in steps if step.startswith("push")]
    assert [kind for kind, _ in pushes] == ["blob", "blob", "manifest", "manifest"]
    assert pushes[2][1].startswith("segment-")
    assert pushes[3][1] == "cache-index"


@pytest.mark.parametrize(
    ("overwrites", "is_confirmed", "pushes"), [(0, True, 1), (1, True, 2), (9, False, 3)]
)
def test_an_overwritten_index_is_written_again(overwrites: int, is_confirmed: bool, pushes: int) -> None:
    """The read-back shows that another writer came in between; after three tries the tag does the rest."""
    storage = ModelStorage()
    stale = CacheIndex().render()
    storage.manifests[Digest.of(stale)] = stale
    counts = {"overwrites": 0, "pushes": 0}

    async def compete(step: str) -> None:
        if step.startswith("push manifest cache-index"):
            counts["pushes"] += 1
        # The read-back comes right after each push; a stale index is there first.
        elif step == "resolve cache-index" and counts["overwrites"] < min(overwrites, counts["pushes"]):
            counts["overwrites"] += 1
            storage.tags["cache-index"] = Digest.of(stale)

    async def run() -> bool:
        repository = ModelRepository(storage, compete)
        segment = await push_segment(repository, table(1), [])
        confirmed = await list_segments(repository, [segment], sleep=no_sleep)
        listing = await read_listing(ModelRepository(storage, nothing))
        assert segment.manifest in {one.manifest for one in listing.segments}
        return confirmed

    assert asyncio.run(run()) is is_confirmed
    assert counts["pushes"] == pushes


def test_what_is_listed_already_is_not_written_again() -> None:
    """Each write is a chance to overwrite another writer's."""

    async def run() -> list[str]:
        storage = ModelStorage()
        segment = await push_segment(ModelRepository(storage, nothing), table(1), [])
        steps: list[str] = []

        async def note(step: str) -> None:
            steps.append(step)

        for _ in range(2):
            assert await list_segments(ModelRepository(storage, note), [segment], sleep=no_sleep)
        return steps

    assert [step.split()[1] for step in asyncio.run(run()) if step.startswith("push")] == ["manifest"]


def test_a_registry_that_lags_is_asked_again() -> None:
    """A tag that was pushed for the first time may not be there at once; the index is whole all the same."""

    async def run() -> None:
        storage = ModelStorage()
        resolved = 0

        async def lag(step: str) -> None:
            nonlocal resolved
            if step == f"resolve {INDEX_TAG}":
                resolved += 1
                if resolved == 2:
                    raise NotFoundError("manifest unknown")

        repository = ModelRepository(storage, lag)
        segment = await push_segment(repository, table(1), [])
        assert await list_segments(repository, [segment], sleep=no_sleep)
        assert INDEX_TAG in storage.tags

    asyncio.run(run())

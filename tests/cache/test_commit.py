"""The commit: nothing is visible before it is whole, and no writer loses another's work."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.commit import list_segments, push_segment
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.oci.digest import Digest
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.publish import CREATED

WRITERS = 4
SETTLING = 20  # turns of the event loop until a writer waits for its next step


class CrashError(Exception):
    """The writer's machine is gone."""


def table(number: int) -> Table:
    return Table(TableHeader(CREATED + timedelta(minutes=number)), (), (store_object(str(number)).narinfo,))


async def write(repository: ModelRepository, number: int, pushed: list[Segment]) -> None:
    """One publisher, from its first blob to its index."""
    segment = await push_segment(repository, table(number), [])
    pushed.append(segment)
    await list_segments(repository, [segment], sleep=no_sleep)


async def no_sleep(_seconds: float) -> None:
    """In a model, time is steps."""


class Writer:
    """A publisher that takes a step whenever it is told to; a crash ends it before its n-th step."""

    def __init__(
        self, storage: ModelStorage, number: int, crash_at: int | None, pushed: list[Segment]
    ) -> None:
        self._turns = asyncio.Semaphore(0)
        self._waiting = 0
        self._steps = 0
        self._crash_at = crash_at
        self._task = asyncio.create_task(write(ModelRepository(storage, self._before), number, pushed))

    async def _before(self, _step: str) -> None:
        self._waiting += 1
        await self._turns.acquire()
        self._steps += 1
        if self._steps == self._crash_at:
            raise CrashError

    async def step(self) -> None:
        """Let it take its next step, if it has one."""
        for _ in range(SETTLING):
            await asyncio.sleep(0)
        if not self._task.done():
            assert self._waiting, "it waits for something that is no step"
            self._waiting -= 1
            self._turns.release()

    async def end(self) -> None:
        """Take all steps that are left."""
        while not self._task.done():
            await self.step()
        with suppress(CrashError):
            await self._task


async def interleave(order: list[int], crashes: dict[int, int]) -> tuple[ModelStorage, list[Segment]]:
    """Run writers step by step in the given order, then each to its end."""
    storage = ModelStorage()
    pushed: list[Segment] = []
    writers = [Writer(storage, number, crashes.get(number), pushed) for number in range(WRITERS)]
    for number in order:
        await writers[number].step()
    for writer in writers:
        await writer.end()
    return storage, pushed


async def nothing(_step: str) -> None:
    """No hook."""


@given(
    order=st.lists(st.integers(0, WRITERS - 1), max_size=60),
    crashes=st.dictionaries(st.integers(0, WRITERS - 1), st.integers(1, 12), max_size=WRITERS),
)
@settings(max_examples=150, deadline=None)
def test_no_interleaving_loses_a_segment(order: list[int], crashes: dict[int, int]) -> None:
    """Whoever pushed a segment's manifest is found, whatever indexes overwrote each other, whoever died."""

    async def check() -> None:
        storage, pushed = await interleave(order, crashes)
        listing = await read_listing(ModelRepository(storage, nothing))
        assert {one.manifest for one in listing.segments} >= {one.manifest for one in pushed}
        # And a later writer lists them all.
        if pushed:
            await write(ModelRepository(storage, nothing), WRITERS, [])
            storage.tags = {tag: at for tag, at in storage.tags.items() if tag == "cache-index"}
            listed = (await read_listing(ModelRepository(storage, nothing))).segments
            assert {one.manifest for one in listed} >= {one.manifest for one in pushed}

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

"""Merging on a model repository, stopped or crossed anywhere: nothing is lost, and the next one tidies up."""

import asyncio
import random
from datetime import timedelta
from functools import partial

import pytest

from nixcache_oci.cache.index_folder import NOWHERE, IndexFolder
from nixcache_oci.cache.listing import Listing, read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table_set import TableSet, read_tables
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.errors import RegistryError
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.publisher import merge_plan, merger
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.merger import Merger
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, merge, push_things, sweep_blobs
from tests.maintenance.served import Reader
from tests.support.interleaving import Writer, no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED
from tests.support.segments import read_records
from tests.support.told import Told

MINUTE = timedelta(minutes=1)
THINGS = [Thing(f"thing-{number}", is_large=number % 3 == 0) for number in range(20)]
EVERYTHING = frozenset(thing.base_name for thing in THINGS)
RUNS = frozenset(f"run-{number}" for number in range(len(THINGS)))


@pytest.fixture(autouse=True)
def two_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is listed is merged."""
    monkeypatch.setattr(merge_plan, "MOST_LEFT", 0)


async def publish(storage: ModelStorage) -> None:
    """Publish each thing by itself, NARs alone or in packs of one."""
    for number, thing in enumerate(THINGS):
        record = PublishRecord("main", f"run-{number}", CREATED, ((thing.path.name, thing.path),))
        repository = ModelRepository(storage, nothing)
        await push_things(repository, [thing], [record], CREATED + number * MINUTE)


def published() -> ModelStorage:
    storage = ModelStorage()
    asyncio.run(publish(storage))
    return storage


async def begin_merge(repository: ModelRepository) -> None:
    await merge(repository, lambda: CREATED + 100 * MINUTE)


async def read(storage: ModelStorage) -> TableSet:
    repository = ModelRepository(storage, nothing)
    listing = await read_listing(repository)
    return await read_tables(repository, IndexFolder(NOWHERE, "a reader"), listing)


def assert_nothing_is_lost(storage: ModelStorage) -> None:
    view = Reader(storage).view()
    assert view.good == EVERYTHING
    assert view.runs == RUNS


def assert_one_is_left(storage: ModelStorage) -> None:
    """A reader reads one table, of every path."""
    tables = asyncio.run(read(storage))
    assert len(tables.listing.segments) == 1
    assert tables.catalog(()).entries == len(THINGS)
    assert_nothing_is_lost(storage)


def test_many_small_segments_become_one() -> None:
    """With every path and record; small NARs lie in one pack, and what was there stays for the grace."""
    storage = published()
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    assert_one_is_left(storage)
    tables = asyncio.run(read(storage))
    [segment] = tables.listing.segments
    urls = [NarUrl.parse(one.url) for one in tables.tables[segment.table].narinfos()]
    assert len({url.blob for url in urls}) == 1
    assert len(tables.taken_in) == len(segment.merges) == len(THINGS)
    assert Reader(storage).view().listed == len(THINGS) + 1


def test_a_crash_anywhere_loses_nothing() -> None:
    """Before each of its steps; the next merge completes it, and takes in what it left."""
    steps = 0

    async def count(_step: str) -> None:
        nonlocal steps
        steps += 1

    asyncio.run(begin_merge(ModelRepository(published(), count)))
    for crash_at in range(1, steps + 1):
        storage = published()

        async def crash(storage: ModelStorage = storage, crash_at: int = crash_at) -> None:
            await Writer(storage, crash_at, begin_merge).end()

        asyncio.run(crash())
        assert_nothing_is_lost(storage)
        asyncio.run(begin_merge(ModelRepository(storage, nothing)))
        assert_one_is_left(storage)


@pytest.mark.parametrize("seed", range(20))
def test_two_mergers_at_once_leave_duplicates_at_most(seed: int) -> None:
    """Step by step in any order, beside a publisher; the next merge takes the duplicates away."""
    storage = published()
    turns = random.Random(seed)

    async def publish_again(repository: ModelRepository) -> None:
        record = PublishRecord("main", "run-0", CREATED)
        await push_things(repository, THINGS[:1], [record], CREATED + 99 * MINUTE)

    async def run() -> None:
        jobs = (begin_merge, begin_merge, publish_again)
        writers = [Writer(storage, None, job) for job in jobs]
        for _ in range(400):
            await turns.choice(writers).step()
        for writer in writers:
            await writer.end()

    asyncio.run(run())
    assert_nothing_is_lost(storage)
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    tables = asyncio.run(read(storage))
    assert len(tables.listing.segments) == 1
    assert_nothing_is_lost(storage)


def test_what_another_merged_meanwhile_is_not_merged_again() -> None:
    """Whoever listed before, and looks again after, moves no byte a second time."""
    storage = published()
    repository = ModelRepository(storage, nothing)
    before = asyncio.run(read_listing(repository))
    asyncio.run(begin_merge(repository))
    blobs = set(storage.blobs)
    late = Merger(repository, IndexFolder(NOWHERE, "a model"), SegmentOptions(), Told(), sleep=no_sleep)
    assert asyncio.run(late.merge(before)) is None
    assert set(storage.blobs) == blobs


def test_what_a_damaged_merged_segment_took_in_is_merged_again() -> None:
    """It counts as not taken in: else nothing would ever be merged beside it."""
    storage = published()
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    [merged] = asyncio.run(read(storage)).listing.segments
    storage.blobs[merged.table] = b"damaged"
    asyncio.run(merge(ModelRepository(storage, nothing), lambda: CREATED + 101 * MINUTE))
    [again] = asyncio.run(read(storage)).listing.segments
    assert again != merged
    assert set(again.merges) == set(merged.merges)


def test_new_packs_are_of_a_few_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who wants one NAR of each pack fetches many at once."""
    monkeypatch.setattr(merger, "_MAX_PACK_BYTES", 1000)
    storage = published()
    before = set(storage.blobs)
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    [segment] = asyncio.run(read(storage)).listing.segments
    new = [len(storage.blobs[blob]) for blob in storage.blobs.keys() - before - {segment.table}]
    assert sorted(new) == [600, *[900] * 6]
    assert_one_is_left(storage)


def test_an_overwritten_index_loses_no_mark() -> None:
    """The merged segment is found by its tag, and names itself what it took in."""
    storage = published()
    before = storage.tags["cache-index"]
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    storage.tags["cache-index"] = before
    assert_one_is_left(storage)


def test_a_damaged_part_keeps_no_others_from_being_merged() -> None:
    """A table that cannot be read, and a manifest that is gone, are for verify to name."""
    storage = published()
    listing = asyncio.run(read_listing(ModelRepository(storage, nothing)))
    storage.blobs[listing.segments[0].table] = b"damaged"
    del storage.manifests[listing.segments[1].manifest]
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    merged = [one for one in asyncio.run(read(storage)).listing.segments if one.merges]
    assert [len(one.merges) for one in merged] == [len(THINGS) - 2]


@pytest.mark.parametrize("step", ["get", "push blob", "push manifest segment", "push manifest cache-index"])
def test_a_merge_that_fails_is_a_warning(step: str) -> None:
    """What was published is complete without it, and it is said in one line."""
    storage = published()

    async def fail(at: str) -> None:
        if at.startswith(step) or (step == "get" and at.startswith("resolve sha256")):
            raise RegistryError("503: try later")

    async def run() -> tuple[Told, Listing]:
        listing = await read_listing(ModelRepository(storage, nothing))
        told = Told()
        repository = ModelRepository(storage, fail)
        folder = IndexFolder(NOWHERE, "a model")
        failing = Merger(repository, folder, SegmentOptions(), told, sleep=no_sleep)
        await failing.follow(Published(segments=listing.segments, listing=listing))
        return told, listing

    told, listing = asyncio.run(run())
    assert len(told.warnings) == 1
    assert (
        "small segments were not merged: 503: try later; what was published is complete" in told.warnings[0]
    )
    assert_nothing_is_lost(storage)
    assert len(listing.segments) == len(THINGS)


def test_an_index_that_is_nearly_full_is_left_to_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged segment whose tag were found, and which no index had space for, would stop every publish."""
    storage = published()
    manifests = dict(storage.manifests)
    monkeypatch.setattr(merger, "MAX_INDEX_BYTES", merger._SPACE_IN_INDEX + 5000)
    asyncio.run(begin_merge(ModelRepository(storage, nothing)))
    assert storage.manifests == manifests


def test_records_keep_their_time_and_order() -> None:
    """Retention counts from them."""
    storage = published()
    repository = ModelRepository(storage, nothing)
    before = asyncio.run(read_records(repository, asyncio.run(read_listing(repository))))
    asyncio.run(begin_merge(repository))
    tables = asyncio.run(read(storage))
    after = asyncio.run(read_records(repository, tables.listing))
    assert sorted(after, key=str) == sorted(before, key=str)


def test_gc_takes_away_what_was_merged_and_nothing_else() -> None:
    """Marked in the first run, however young, and deleted after the grace; every byte stays in reach."""
    storage = published()
    repository = ModelRepository(storage, nothing)
    asyncio.run(begin_merge(repository))
    remover = ModelRemover(storage, nothing)
    options = GcOptions(scope_ttl=None, retention=timedelta(days=1000))
    first = CREATED + 101 * MINUTE
    later = first + options.grace + timedelta(days=1)
    plans = []
    for at in (first, later, later + MINUTE):
        plan, _ = asyncio.run(collect(repository, remover, options, partial(lambda time: time, at)))
        plans.append(plan)
    condemned, unlisted, deleted = plans
    counts = [len(condemned.condemn), len(unlisted.unlist), len(deleted.delete)]
    assert counts == [len(THINGS)] * 3
    sweep_blobs(storage)
    assert_one_is_left(storage)
    assert Reader(storage).view().listed == 1

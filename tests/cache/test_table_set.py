"""All tables of a listing: the newest that fit, each once, and nothing of failed looks stays."""

import asyncio
import dataclasses
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache import table_set
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_set import TableSet, read_tables
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.errors import RegistryError
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.oci.digest import Digest
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.process import open_files_in, until
from tests.support.publish import CREATED
from tests.support.slow_repository import SlowRepository

HOUR = timedelta(hours=1)


class Cache:
    """A repository that notes what is read, and the folder of one reader."""

    def __init__(self, folder: Path) -> None:
        self.storage = ModelStorage()
        self.asked: list[str] = []
        self.fails = False
        self.repository = ModelRepository(self.storage, self._note)
        self.folder = IndexFolder(folder, "a cache")

    async def _note(self, step: str) -> None:
        self.asked.append(step)
        if self.fails and "stat" in step:
            raise RegistryError("503")

    async def push(self, seed: str, created: datetime = CREATED) -> Segment:
        return await self.merge([seed], created)

    async def merge(self, seeds: Sequence[str], created: datetime, *taken_in: Segment) -> Segment:
        table = Table(TableHeader(created), (), tuple(store_object(seed).narinfo for seed in seeds))
        merges = [segment.manifest for segment in taken_in]
        return await push_segment(self.repository, table, [], merges=merges)

    async def read(
        self, *segments: Segment, former: TableSet | None = None, budget: TableBudget | None = None
    ) -> TableSet:
        held = former.tables if former is not None else None
        return await read_tables(self.repository, self.folder, Listing(segments=segments), held, budget)

    def on_disk(self) -> int:
        return len(list((self.folder.path / "tables").glob("*.table")))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


@pytest.mark.parametrize(
    "budget",
    [
        {"most_entries": 2},
        {"most_bytes": 800},
    ],
)
async def test_the_newest_that_fit_are_read(
    cache: Cache, budget: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they come from afar, from disk, or are held; what is left out is no damage, and said once."""
    monkeypatch.setattr(table_set, "_PARALLEL_TABLES", 1)
    segments = [await cache.push(str(hour), CREATED + hour * HOUR) for hour in range(5)]
    look: TableSet | None = None
    for _ in range(3):
        look = await cache.read(*segments, former=look, budget=TableBudget(**budget))
        assert look.listing.segments == tuple(segments[3:])
        assert look.damaged == {}
        assert look.left_out is not None
        assert look.left_out.startswith("3 of 5 segments left out, the oldest: all tables together")
    assert cache.on_disk() == 2


async def test_what_is_new_counts_before_what_is_held(cache: Cache) -> None:
    """A cache that is over a limit shows each new publish, and leaves out its oldest."""
    segments = [await cache.push(str(hour), CREATED + hour * HOUR) for hour in range(4)]
    look = await cache.read(*segments[:2])
    look = await cache.read(*segments, former=look, budget=TableBudget(most_entries=3))
    assert look.listing.segments == tuple(segments[1:])


async def test_what_is_held_is_not_walked_in_the_event_loop(cache: Cache) -> None:
    """Thousands of tables would take milliseconds, in which no request is answered."""
    threads = set()

    class Watched(TableBudget):
        def open(self, entries: int) -> None:
            threads.add(threading.current_thread())
            super().open(entries)

    segments = [await cache.push(str(hour), CREATED + hour * HOUR) for hour in range(4)]
    look = await cache.read(*segments)
    again = await cache.read(*segments, former=look, budget=Watched())
    assert again.tables == look.tables
    assert threads
    assert threading.current_thread() not in threads


async def test_what_is_damaged_counts_too(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else thousands of tables would be inflated at each look, only to be found damaged."""
    monkeypatch.setattr(table_set, "_PARALLEL_TABLES", 1)
    segments = [await cache.push(str(hour), CREATED + hour * HOUR) for hour in range(5)]
    for segment in segments:
        cache.storage.blobs[segment.table] = bytes(1000)
    cache.asked.clear()
    look = await cache.read(*segments, budget=TableBudget(most_bytes=2000))
    assert (len(look.damaged), look.listing.segments) == (2, ())
    assert len([step for step in cache.asked if "stat" in step]) == 3


async def test_a_table_that_many_segments_name_is_one_table(cache: Cache) -> None:
    """An index may name one a thousand times: it is fetched, counted and searched once."""
    segment = await cache.push("one")
    others = [
        dataclasses.replace(
            segment,
            created=CREATED + hour * HOUR,
            descriptor=dataclasses.replace(segment.descriptor, digest=Digest.of(bytes([hour]))),
        )
        for hour in range(100)
    ]
    cache.asked.clear()
    look = await cache.read(*others, budget=TableBudget(most_entries=1))
    assert cache.asked == [f"stat {segment.table}"]
    assert look.listing.segments == tuple(others)
    catalog = look.catalog(())
    assert (len(catalog.tables), catalog.entries) == (1, 1)
    assert catalog.tables[0].created == others[-1].created


async def test_what_is_kept_beside_has_the_same_limits(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that lists other segments at each look, one of them damaged, would fill memory and disk."""
    monkeypatch.setattr(table_set, "MAX_SEGMENTS", 4)
    look, segments = TableSet(), list[Segment]()
    for round_ in range(5):
        segments = [await cache.push(f"{round_}-{n}", CREATED + (3 * round_ + n) * HOUR) for n in range(3)]
        look = (await cache.read(*segments, former=look)).beside(look)
    assert set(segments) <= set(look.listing.segments)
    assert len(look.listing.segments) == len(look.tables) == 4
    former = [segment for segment in look.listing.segments if segment not in segments]
    assert [segment.created for segment in former] == [CREATED + 11 * HOUR]


async def test_a_look_that_fails_leaves_its_tables_to_the_next_one_only(cache: Cache) -> None:
    """A registry that breaks off each look, and lists other tables at the next one, would fill the disk."""
    kept = await cache.push("kept")
    look = await cache.read(kept)
    await asyncio.to_thread(cache.folder.save, look.listing)
    for round_ in range(4):
        new = await cache.push(f"new-{round_}", CREATED + HOUR)
        await cache.read(new, former=look)
        cache.fails = True
        with pytest.raises(RegistryError):
            await cache.read(new, await cache.push(f"never-{round_}", CREATED), former=look)
        cache.fails = False
        assert cache.on_disk() == 2
    assert (await cache.read(kept, former=look)).tables.keys() == {kept.table}
    assert cache.on_disk() == 1


@contextmanager
def no_more_files() -> Iterator[None]:
    """Whatever is opened fails, as in a process whose clients have all files that it may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_table_that_cannot_be_opened_loses_no_other(cache: Cache) -> None:
    """It is named, it stays on disk, and it is read when there are files again; what is held is served."""
    held, saved, new = [await cache.push(name) for name in ("held", "saved", "new")]
    look = await cache.read(held)
    await cache.read(held, saved, former=look)
    with no_more_files():
        look = (await cache.read(held, saved, new, former=look)).beside(look)
    assert look.listing.segments == (held,)
    assert look.damaged.keys() == {str(saved.tag), str(new.tag)}
    assert all("Too many open files" in reason for reason in look.damaged.values())
    cache.asked.clear()
    look = await cache.read(held, saved, new, former=look)
    assert (look.listing.segments, look.damaged) == ((held, saved, new), {})
    assert cache.asked == [f"stat {new.table}"]


async def test_tables_hold_no_files(cache: Cache) -> None:
    """A cache that is published to all day has thousands of them."""
    look = await cache.read(*[await cache.push(str(number)) for number in range(40)])
    again = await cache.read(*look.listing.segments)
    assert len(look.tables) == len(again.tables) == 40
    assert open_files_in(cache.folder.path) == []


@pytest.mark.parametrize(("paths", "at_once"), [(1, 24), (1000, 24), (1001, 4)])
async def test_many_small_tables_are_fetched_at_once(cache: Cache, paths: int, at_once: int) -> None:
    """The newest first: a cache that is published to all day has a thousand, and each is a round trip."""
    repository = SlowRepository()
    repository.gate.clear()
    template = await cache.push("template")
    segments = []
    for hour in range(30):
        text = render_table(Table(TableHeader(CREATED, source=str(hour))))
        table = repository.add(zstandard.ZstdCompressor().compress(text))
        segments.append(
            dataclasses.replace(template, table=table, paths=paths, created=CREATED + hour * HOUR)
        )
    reading = asyncio.create_task(read_tables(repository, cache.folder, Listing(segments=tuple(segments))))
    await until(lambda: repository.at_gate == at_once)
    newest_first = [segment.table for segment in reversed(segments)]
    assert len(repository.opened) == at_once
    # All 24 look on disk first, and on a busy machine not in their order.
    assert set(repository.opened) <= set(newest_first[:24])
    repository.gate.set()
    assert (await reading).tables.keys() == set(newest_first)


@pytest.mark.parametrize(("files", "at_once"), [(64, 4), (256, 16), (4096, 24)])
def test_few_files_take_few_fetches(files: int, at_once: int) -> None:
    """Each has a connection or two, and the clients need theirs."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        assert table_set._parallel_tables() == at_once
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("broken", "damaged", "read"),
    [
        ((), (), ("second",)),
        (("first",), (), ("second",)),
        (("second",), ("second",), ("first", "c")),
        (("second", "first"), ("second", "first"), ("a", "b", "c")),
    ],
)
async def test_what_was_taken_in_is_read_only_where_the_merged_table_is_damaged(
    cache: Cache, broken: Sequence[str], damaged: Sequence[str], read: Sequence[str]
) -> None:
    """A hundred small publishes cost the request of one, and a damaged table loses nothing that is there."""
    segments = {seed: await cache.push(seed, CREATED + hour * HOUR) for hour, seed in enumerate("abc")}
    segments["first"] = await cache.merge("ab", CREATED + 3 * HOUR, segments["a"], segments["b"])
    segments["second"] = await cache.merge("abc", CREATED + 4 * HOUR, segments["first"], segments["c"])
    for name in broken:
        cache.storage.blobs[segments[name].table] = bytes(1000)
    cache.asked.clear()
    look = await cache.read(*segments.values())
    assert look.damaged.keys() == {str(segments[name].tag) for name in damaged}
    assert set(look.listing.segments) == {segments[name] for name in read}
    assert set(look.listed) == {one for name, one in segments.items() if name not in damaged}
    assert all(look.catalog(()).find(store_object(seed).narinfo.store_path.hash_part) for seed in "abc")
    assert sum("stat" in step for step in cache.asked) == len(damaged) + len(read)


async def test_a_condemned_segment_takes_nothing_in(cache: Cache) -> None:
    """gc is about to delete it: what it took in is read beside it."""
    one = await cache.push("a")
    merged = mark(await cache.merge("a", CREATED + HOUR, one), CREATED)
    look = await cache.read(one, merged)
    assert look.listing.segments == (one, merged)


async def test_whoever_checks_a_cache_reads_all_tables(cache: Cache) -> None:
    """gc reads what was taken in, and refuses to run where it is damaged: verify has to find that."""
    one = await cache.push("a")
    merged = await cache.merge("a", CREATED + HOUR, one)
    listing = Listing(segments=(one, merged))
    look = await read_tables(cache.repository, cache.folder, listing, with_taken_in=True)
    assert (look.listing.segments, look.taken_in) == ((one, merged), ())

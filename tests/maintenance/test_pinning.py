"""Pins beside collections: what is pinned is listed by a segment that no gc takes, whoever comes first."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PinRecord, PublishRecord, UnpinRecord
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.maintenance.pinning import Relisted, find_condemned, write_pinning
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, push_things, sweep_blobs
from tests.maintenance.served import Reader
from tests.support.interleaving import Writer, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

DAY = timedelta(days=1)
LIB = Thing("lib")
OLD = Thing("old", (LIB.base_name,))
LARGE = Thing("large", (OLD.base_name,), is_large=True)
NEW = Thing("new")
CLOSURE = {LIB.base_name, OLD.base_name, LARGE.base_name}


async def read_inventory(repository: ModelRepository, folder: Path) -> Inventory:
    listing = await read_listing(repository)
    return Inventory(await read_tables(repository, IndexFolder(folder, "model"), listing))


class Scene:
    """A cache in which all of a closure was condemned, more than the grace ago."""

    def __init__(self, folder: Path) -> None:
        self.storage = ModelStorage()
        self.folder = folder
        self.now = CREATED

    async def prepare(self) -> None:
        repository = ModelRepository(self.storage, nothing)
        for thing, others in ((LARGE, [LIB, OLD]), (NEW, [])):
            record = PublishRecord("main", thing.base_name, self.now, (("root", thing.path),))
            await push_things(repository, [*others, thing], [record], self.now)
            self.now += 31 * DAY
        await self.collect(repository)
        self.now += 31 * DAY

    async def collect(self, repository: ModelRepository) -> None:
        remover = ModelRemover(self.storage, repository._before)
        await collect(repository, remover, GcOptions(), lambda: self.now)

    async def pin(self, repository: ModelRepository) -> None:
        inventory = await read_inventory(repository, self.folder)
        assert inventory.find(LARGE.path.hash_part)
        record = PinRecord("release", LARGE.path, self.now, "forever")
        await write_pinning(
            repository, [record], find_condemned(inventory, [LARGE.path.hash_part]), SegmentOptions()
        )

    async def collect_for_months(self) -> None:
        """Long enough for anything that could leave to be gone."""
        for _ in range(4):
            self.now += 31 * DAY
            await self.collect(ModelRepository(self.storage, nothing))
            sweep_blobs(self.storage)


async def test_what_was_condemned_is_listed_again(tmp_path: Path) -> None:
    """The closure of a pin is in good segments at once, with all of its blobs, and stays."""
    scene = Scene(tmp_path)
    await scene.prepare()
    assert Reader(scene.storage).view().good == {NEW.base_name}
    await scene.pin(ModelRepository(scene.storage, nothing))
    assert Reader(scene.storage).view().good == CLOSURE | {NEW.base_name}
    await scene.collect_for_months()
    assert Reader(scene.storage).view().good >= CLOSURE


async def test_nothing_is_listed_twice(tmp_path: Path) -> None:
    """A pin of what a good segment lists is a record and nothing else; so is an unpin."""
    scene = Scene(tmp_path)
    repository = ModelRepository(scene.storage, nothing)
    await push_things(repository, [LIB, OLD, LARGE], [], CREATED)
    inventory = await read_inventory(repository, tmp_path)
    assert find_condemned(inventory, [LARGE.path.hash_part]) == Relisted()
    await write_pinning(repository, [UnpinRecord("release", scene.now)], Relisted(), SegmentOptions())
    assert [segment.paths for segment in (await read_listing(repository)).segments] == [3, 0]


@pytest.mark.parametrize("first", ["gc", "pin"])
async def test_a_pin_beside_a_gc_that_was_about_to_take_it(tmp_path: Path, first: str) -> None:
    """Whichever pauses wherever: what was pinned is there for good, or the pin was refused."""
    refused = 0
    for steps in range(60):
        scene = Scene(tmp_path / str(steps))
        await scene.prepare()
        jobs = [scene.collect, scene.pin] if first == "gc" else [scene.pin, scene.collect]
        one = Writer(scene.storage, None, jobs[0])
        for _ in range(steps):
            await one.step()
        try:
            await jobs[1](ModelRepository(scene.storage, nothing))
            await one.end()
        except (AssertionError, Error):
            await asyncio.wait([one._task])
            refused += 1  # gc was through with it: publish it first
            continue
        if first == "gc":
            # An index that gc wrote late may not list what only the next gc finds by its tag.
            assert Reader(scene.storage).view().served.keys() >= CLOSURE
        await scene.collect_for_months()
        assert Reader(scene.storage).view().good >= CLOSURE
    assert refused < 60

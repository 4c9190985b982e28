"""Repairs beside publishers and collections, step by step: what is good stays, and all comes right again."""

import random
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.former import read_former
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PinRecord, PublishRecord
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, ReferencedError, RegistryError
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.maintenance.problem import Problem
from nixcache_oci.maintenance.repair.repair_plan import RepairPlan, Rewrite
from nixcache_oci.maintenance.repair.repairer import Outcome, Repairer, RepairOptions, Resent
from nixcache_oci.maintenance.repair.segment_salvage import ReadSegment
from nixcache_oci.maintenance.repair.writing import carry_out_repair
from nixcache_oci.maintenance.verifier import Verifier
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, publish_things, push_things
from tests.maintenance.served import Reader
from tests.support.interleaving import Writer, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

HOUR = timedelta(hours=1)
OPTIONS = GcOptions(min_age=timedelta(), segments_of_a_class=1)

LOST = Thing("lost", is_large=True)
TOOL = Thing("tool", (LOST.base_name,))
LIB = Thing("lib")
APP = Thing("app", (LIB.base_name,), is_large=True)
NEW = Thing("new", (APP.base_name,))
BROKEN = [LOST, TOOL]
GOOD = [LIB, APP]


def ignore(_line: str) -> None:
    """What people would read."""


class NoStore:
    """A machine without a store publishes nothing again."""

    store = None
    public_keys = ()

    async def resend(self, *_found: object, **_how: object) -> Resent:
        raise AssertionError("there is nothing to send")


class Scene:
    """A cache of two publishes and a pin, in which the bytes of one path are lost."""

    def __init__(self, folder: Path) -> None:
        self.storage = ModelStorage()
        self.folder = folder
        self.now = now() - 24 * HOUR

    async def prepare(self) -> None:
        repository = ModelRepository(self.storage, nothing)
        pin = PinRecord("release", LIB.path, self.now, "forever")
        await push_things(repository, [LOST, TOOL, LIB], [self.record(TOOL), pin], self.now)
        await push_things(repository, [APP], [self.record(APP)], self.now + HOUR)
        del self.storage.blobs[Digest.of(LOST.content)]

    def record(self, thing: Thing) -> PublishRecord:
        return PublishRecord(thing.base_name, "run", self.now, (("root", thing.path),))

    async def repair(self, repository: ModelRepository) -> Outcome:
        """Repair as the program does on a machine that has no store."""

        async def read() -> Inventory:
            return await self.read(repository)

        upstreams = Upstreams([])
        try:
            verifier = Verifier(repository, upstreams, (), with_content=False)
            remover = ModelRemover(self.storage, repository._before)
            options = RepairOptions(is_dry_run=False, force=True)
            inventory = await read()
            problems = await verifier.run(inventory)
            return await Repairer(repository, remover, verifier, read, NoStore(), options, ignore).run(
                inventory, problems
            )
        finally:
            await upstreams.close()

    async def read(self, repository: ModelRepository) -> Inventory:
        listing = await read_listing(repository)
        return Inventory(await read_tables(repository, IndexFolder(self.folder, "model"), listing))

    async def try_to_repair(self, repository: ModelRepository) -> None:
        with suppress(Error):  # another one was faster: the next run goes on
            await self.repair(repository)

    async def try_to_collect(self, repository: ModelRepository) -> None:
        with suppress(Error):
            await self.collect(repository)

    async def collect(self, repository: ModelRepository) -> None:
        await collect(repository, ModelRemover(self.storage, repository._before), OPTIONS, self._later)

    async def publish(self, repository: ModelRepository) -> None:
        await publish_things(repository, self.storage, [LIB, APP, NEW], [self.record(NEW)], self._later)

    def _later(self) -> datetime:
        return self.now + 20 * HOUR


async def test_it_takes_out_what_nobody_has(tmp_path: Path) -> None:
    """With what refers to it, and not the pin beside it; a second repair finds nothing to do."""
    scene = Scene(tmp_path)
    await scene.prepare()
    outcome = await scene.repair(ModelRepository(scene.storage, nothing))
    assert outcome.unlisted.keys() == {str(thing.path) for thing in BROKEN}
    assert outcome.left == []
    assert Reader(scene.storage).view().good == {thing.base_name for thing in GOOD}
    before = dict(scene.storage.tags)
    assert (await scene.repair(ModelRepository(scene.storage, nothing))).problems == []
    assert scene.storage.tags == before


@pytest.mark.parametrize("seed", range(40))
async def test_nothing_good_is_lost_in_any_interleaving(tmp_path: Path, seed: int) -> None:
    """Repair, publisher and gc at once, the first one killed in half of the cases: then one more of each."""
    chance = random.Random(seed)
    scene = Scene(tmp_path)
    await scene.prepare()
    crash_at = chance.choice([None, chance.randrange(1, 60)])
    writers = [
        Writer(scene.storage, crash_at, scene.try_to_repair),
        Writer(scene.storage, None, scene.publish),
        Writer(scene.storage, None, scene.try_to_collect),
    ]
    while writers:
        writer = chance.choice(writers)
        for _ in range(chance.randrange(1, 12)):
            await writer.step()
        if writer._task.done():
            await writer.end()
            writers.remove(writer)
    repository = ModelRepository(scene.storage, nothing)
    outcome = await scene.repair(repository)
    assert outcome.left == []
    await scene.collect(repository)
    view = Reader(scene.storage).view()
    assert view.good >= {thing.base_name for thing in (*GOOD, NEW)}
    assert not view.served.keys() & {thing.base_name for thing in BROKEN}
    assert view.broken(frozenset()) == set()
    assert any(isinstance(record, PinRecord) for record in (await scene.read(repository)).records())


# What a repair writes beside others: a stale index, a refused deletion, a gc that was faster.


def index_of(storage: ModelStorage) -> CacheIndex:
    return CacheIndex.parse(storage.manifests[storage.tags[INDEX_TAG]])


async def verify(scene: Scene) -> list[Problem]:
    """Look at a cache that changes after its tables were read."""
    repository = ModelRepository(scene.storage, nothing)
    inventory = await scene.read(repository)
    del scene.storage.blobs[Digest.of(LOST.content)]
    old = index_of(scene.storage)
    later = CacheIndex(old.segments[1:], old.segments[1].created).render()
    await repository.push_manifest(INDEX_TAG, later, "application/vnd.oci.image.index.v1+json")
    upstreams = Upstreams([])
    try:
        return await Verifier(repository, upstreams, (), with_content=False).run(inventory)
    finally:
        await upstreams.close()


async def test_an_index_that_was_written_late_is_mended(tmp_path: Path) -> None:
    """Who read the index before, and wrote it behind, lists what is deleted: it is taken out again."""
    scene = Scene(tmp_path)
    await scene.prepare()
    stale = scene.storage.tags[INDEX_TAG]

    async def before(step: str) -> None:
        if step.startswith("remove"):
            scene.storage.tags[INDEX_TAG] = stale

    outcome = await scene.repair(ModelRepository(scene.storage, before))
    assert outcome.left == []
    assert all(segment.manifest in scene.storage.manifests for segment in index_of(scene.storage).segments)
    view = Reader(scene.storage).view()
    assert view.served.keys() == {thing.base_name for thing in GOOD}


async def test_what_cannot_be_deleted_is_marked(tmp_path: Path) -> None:
    """Readers take it as the last choice, gc takes it out in time, and what is good is in a good segment."""
    scene = Scene(tmp_path)
    await scene.prepare()

    async def before(step: str) -> None:
        if step.startswith("remove"):
            raise RegistryError("deleting is not allowed here")

    outcome = await scene.repair(ModelRepository(scene.storage, before))
    assert {problem.path for problem in outcome.left} == {str(LOST.path)}
    [marked] = [one for one in index_of(scene.storage).segments if one.condemned is not None]
    assert marked.created == scene.now
    good = {one.table for one in index_of(scene.storage).segments if one.condemned is None}
    entries = [entry.base_name for table in good for entry in Reader(scene.storage).entries(str(table))]
    assert sorted(entries) == sorted(thing.base_name for thing in GOOD)


async def test_what_lost_its_tag_only_is_left_for_gc(tmp_path: Path) -> None:
    """A registry may keep what the index has just listed: without its tag it is in the cache no more."""
    scene = Scene(tmp_path)
    await scene.prepare()

    async def before(step: str) -> None:
        if step.startswith("remove"):
            kept = Digest.parse(step.removeprefix("remove "))
            scene.storage.tags = {tag: at for tag, at in scene.storage.tags.items() if at != kept}
            raise ReferencedError("an index lists it")

    repository = ModelRepository(scene.storage, before)
    repository.can_list_untagged = False
    before_repair = {segment.manifest for segment in index_of(scene.storage).segments}
    outcome = await scene.repair(repository)
    assert (outcome.left, outcome.is_stuck) == ([], False)
    index = index_of(scene.storage)
    assert not any(segment.condemned for segment in index.segments)
    replaced = before_repair - {segment.manifest for segment in index.segments}
    assert replaced
    assert replaced <= read_former(index).keys()


async def test_what_is_written_anew_is_not_deleted_with_what_it_replaces() -> None:
    """A repair in the second of the publish: the same content has another digest all the same."""
    storage = ModelStorage()
    repository = ModelRepository(storage, nothing)
    await push_things(repository, [APP], [], CREATED)
    [segment] = (await read_listing(repository)).segments
    del storage.manifests[segment.manifest]
    rewrite = Rewrite(ReadSegment(segment), TableHeader(CREATED), (APP.narinfo(),), ())
    plan = RepairPlan(rewrites=(rewrite,))
    remover = ModelRemover(storage, nothing)
    await carry_out_repair(repository, remover, plan, options=SegmentOptions(), clock=lambda: CREATED)
    [replacement] = (await read_listing(repository)).segments
    assert replacement.manifest in storage.manifests
    assert Reader(storage).view().served.keys() == {APP.base_name}


async def test_what_gc_takes_meanwhile_is_not_missing(tmp_path: Path) -> None:
    """A segment that left the index while its blobs were asked for is nobody's problem."""
    scene = Scene(tmp_path)
    await scene.prepare()
    repository = ModelRepository(scene.storage, nothing)
    await repository.push_blob(Digest.of(LOST.content), LOST.content)
    assert await verify(scene) == []

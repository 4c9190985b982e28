"""What a repair writes beside others: a stale index, a refused deletion, a gc that was faster."""

from pathlib import Path

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import RegistryError
from nixcache_oci.maintenance.problem import Problem
from nixcache_oci.maintenance.repair.repair_plan import RepairPlan, Rewrite
from nixcache_oci.maintenance.repair.segment_salvage import ReadSegment
from nixcache_oci.maintenance.repair.writing import carry_out_repair
from nixcache_oci.maintenance.verifier import Verifier
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import ModelRemover, push_things
from tests.maintenance.served import Reader
from tests.maintenance.test_repair_interleaving import APP, GOOD, LOST, Scene
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED


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

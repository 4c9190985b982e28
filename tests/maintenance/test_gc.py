"""A collection from end to end, on a model repository: what it reads, writes and deletes, and when not."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest
import zstandard

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord, Record
from nixcache_oci.cache.segment import SegmentTag
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.errors import Error, FormatError, RegistryError
from nixcache_oci.maintenance.gc.collect import Collected, carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, push_things, sweep_blobs
from tests.maintenance.served import Reader, View
from tests.support.interleaving import no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED, publish_version1

DAY = timedelta(days=1)
LIB = Thing("lib")
WEB1, WEB2 = (Thing(f"web-{number}", (LIB.base_name,), size=1000) for number in (1, 2))
BIG = Thing("big", (LIB.base_name,), size=400, is_large=True)


class Cache:
    """One repository and a clock."""

    def __init__(self) -> None:
        self.storage = ModelStorage()
        self.steps: list[str] = []
        self.fail: Callable[[str], None] = lambda _step: None
        self.remover = ModelRemover(self.storage, self._note)
        self.now = CREATED

    async def _note(self, step: str) -> None:
        self.steps.append(step)
        self.fail(step)

    def repository(self) -> ModelRepository:
        return ModelRepository(self.storage, self._note)

    def pass_days(self, days: float) -> None:
        self.now += days * DAY
        self.remover.look(self.now)

    async def publish(self, *things: Thing, scope: str = "main", records: Sequence[Record] = ()) -> None:
        roots = tuple((thing.path.name.split("-")[1], thing.path) for thing in things[-1:])
        record = PublishRecord(scope, self.now.isoformat(), self.now, roots)
        await push_things(ModelRepository(self.storage, nothing), things, [record, *records], self.now)

    async def collect(self, *, force: bool = True) -> tuple[GcPlan, Collected]:
        self.steps.clear()
        return await collect(self.repository(), self.remover, GcOptions(), lambda: self.now, force=force)

    def view(self) -> View:
        return Reader(self.storage).view()

    @property
    def segments(self) -> int:
        return sum(SegmentTag.parse(tag) is not None for tag in self.storage.tags)

    @property
    def writes(self) -> list[str]:
        return [step for step in self.steps if step.startswith(("push", "remove"))]


async def test_the_way_out() -> None:
    """Condemned after its retention, unlisted after the grace, deleted a run later; its bytes go with it."""
    cache = Cache()
    await cache.publish(LIB, WEB1)
    cache.pass_days(1)
    await cache.publish(WEB2, scope="main")
    cache.pass_days(31)
    await cache.collect()
    # web-1 is dead and lib is not: what is left was rewritten, and the old segment is still served.
    assert (cache.view().listed, cache.view().condemned) == (3, 1)
    assert cache.view().good == {LIB.base_name, WEB2.base_name}
    assert cache.view().served.keys() == {LIB.base_name, WEB1.base_name, WEB2.base_name}
    cache.pass_days(30)
    await cache.collect()
    assert cache.view().served.keys() == {LIB.base_name, WEB2.base_name}
    assert (cache.view().listed, cache.segments) == (2, 3)
    cache.pass_days(0.1)
    plan, collected = await cache.collect()
    assert len(collected.deleted) >= len(plan.delete) == 1
    assert cache.segments == 2
    cache.pass_days(20)
    await cache.collect()  # the former indexes are old enough now
    sweep_blobs(cache.storage)
    assert not any(WEB1.content in content for content in cache.storage.blobs.values())
    assert cache.view().good == {LIB.base_name, WEB2.base_name}
    plan, _ = await cache.collect()
    assert not plan.changes_segments
    assert not plan.sweep
    assert len(cache.writes) == 1  # of the note that there is nothing to do
    await cache.collect()
    assert cache.writes == []


async def test_a_merge_moves_slices_and_leaves_blobs() -> None:
    """NAR blobs stay, slices move to one pack; records keep their times and narinfos all but their URLs."""
    cache = Cache()
    things = [Thing(f"x-{number}", size=200) for number in range(8)]
    for thing in (*things, BIG):
        await cache.publish(*([LIB] if thing is BIG else []), thing, scope=thing.path.name)
    before = dict(cache.storage.blobs)
    cache.pass_days(2)
    prepared = await prepare_gc(
        cache.repository(), cache.remover, GcOptions(segments_of_a_class=2), clock=lambda: cache.now
    )
    sources = [source for one in prepared.plan.merge for source in one.sources]
    assert len(sources) == 9
    await carry_out_gc(cache.repository(), cache.remover, prepared, clock=lambda: cache.now, sleep=no_sleep)
    view = cache.view()
    assert (view.listed, view.condemned) == (10, 9)
    assert view.good == {thing.base_name for thing in (*things, BIG, LIB)}
    [pack, _table] = [content for digest, content in cache.storage.blobs.items() if digest not in before]
    assert len(pack) == 8 * 200 + len(LIB.content)
    again = await prepare_gc(cache.repository(), cache.remover, GcOptions(), clock=lambda: cache.now)
    [merged] = [one for one in again.state.segments if not one.is_condemned]
    assert merged.table is not None
    assert set(merged.records) == {record for source in sources for record in source.records}
    tables = [source.table for source in sources if source.table is not None]
    former = {narinfo.store_path: narinfo for table in tables for narinfo in table.narinfos()}
    for narinfo in merged.table.narinfos():
        assert narinfo.sigs == former[narinfo.store_path].sigs
        assert narinfo.nar_hash == former[narinfo.store_path].nar_hash
        assert (narinfo.url == former[narinfo.store_path].url) == (narinfo.store_path == BIG.path)


async def test_a_publish_pushes_again_what_is_condemned() -> None:
    """A to B to A: the second A is listed in a good segment, and nothing has to be lifted."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(LIB, thing)
        cache.pass_days(31)
    await cache.collect()
    assert WEB1.base_name not in cache.view().good
    await cache.publish(LIB, WEB1)
    plan, _ = await cache.collect()
    assert WEB1.base_name in cache.view().good
    assert not plan.lift


async def test_a_path_that_is_needed_again_is_lifted() -> None:
    """A publish counted on it just before it was condemned, and died before it looked again."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(LIB, thing)
        cache.pass_days(31)
    await cache.collect()
    assert cache.view().condemned == 1
    record = PublishRecord("dev", "1", cache.now, (("web", WEB1.path),))
    await push_things(ModelRepository(cache.storage, nothing), [], [record], cache.now)
    cache.pass_days(40)
    await cache.collect()
    assert WEB1.base_name in cache.view().good


async def test_only_gc_moves_the_watermark() -> None:
    """To its own start minus the grace; and never back."""
    cache = Cache()
    for days in (0, 1, 31):
        cache.pass_days(days)
        await cache.publish(Thing(f"web-{days}"))
    stored = await cache.repository().get_manifest(INDEX_TAG)
    assert CacheIndex.parse(stored.content).watermark == EPOCH
    cache.pass_days(32)
    await cache.collect()
    stored = await cache.repository().get_manifest(INDEX_TAG)
    assert CacheIndex.parse(stored.content).watermark == cache.now - 30 * DAY


async def break_table(cache: Cache) -> None:
    [*_, segment] = (await read_listing(ModelRepository(cache.storage, nothing))).segments
    cache.storage.blobs[segment.table] = b"other bytes"


async def lose_table(cache: Cache) -> None:
    [*_, segment] = (await read_listing(ModelRepository(cache.storage, nothing))).segments
    del cache.storage.blobs[segment.table]


async def lose_manifest(cache: Cache) -> None:
    [*_, segment] = (await read_listing(ModelRepository(cache.storage, nothing))).segments
    del cache.storage.manifests[segment.manifest]


async def lose_listed_manifest(cache: Cache) -> None:
    [*_, segment] = (await read_listing(ModelRepository(cache.storage, nothing))).segments
    del cache.storage.manifests[segment.manifest]
    del cache.storage.tags[str(segment.tag)]


def point_index_at(cache: Cache, content: bytes) -> None:
    cache.storage.manifests[Digest.of(content)] = content
    cache.storage.tags[INDEX_TAG] = Digest.of(content)


async def empty_index(cache: Cache) -> None:
    point_index_at(cache, CacheIndex(watermark=cache.now).render())


async def half_index(cache: Cache) -> None:
    stored = await ModelRepository(cache.storage, nothing).get_manifest(INDEX_TAG)
    point_index_at(cache, stored.content.replace(media_type.ANNOTATION_TABLE.encode(), b"dev.nixcache.tabel"))


async def foreign_index(cache: Cache) -> None:
    point_index_at(
        cache, b'{"schemaVersion":2,"manifests":[],"mediaType":"%s"}' % media_type.IMAGE_INDEX.encode()
    )


async def version1(cache: Cache) -> None:
    await publish_version1(ModelRepository(cache.storage, nothing), [])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (break_table, FormatError),
        (lose_table, RegistryError),
        (lose_manifest, RegistryError),
        (lose_listed_manifest, RegistryError),
        (empty_index, Error),
        (half_index, FormatError),
        (foreign_index, FormatError),
        (version1, FormatError),
    ],
    ids=lambda one: one.__name__,
)
async def test_what_cannot_be_read_whole_is_left_alone(
    damage: Callable[[Cache], Awaitable[None]], error: type[Error]
) -> None:
    """Half of a cache would condemn what the other half needs: gc says why, and writes nothing."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(LIB, thing)
        cache.pass_days(31)
    await damage(cache)
    with pytest.raises(error, match=r"model|cache-index|annotation"):
        await cache.collect(force=False)
    assert cache.writes == []


async def test_any_answer_that_fails_writes_nothing() -> None:
    """A registry that answers 5xx at any moment before the write: nothing is deleted, nothing is marked."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(LIB, thing)
        cache.pass_days(31)
    good = cache.view()
    reads = 0
    while True:
        countdown = [reads]

        def fail(step: str, countdown: list[int] = countdown) -> None:
            if step.startswith(("push", "remove")):
                return
            countdown[0] -= 1
            if countdown[0] < 0:
                raise RegistryError(f"model: 503 at {step}", status=503, is_temporary=True)

        cache.fail = fail
        index = cache.storage.tags[INDEX_TAG]
        try:
            await cache.collect()
        except RegistryError:
            reads += 1
        else:
            break
        if cache.storage.tags[INDEX_TAG] != index:
            break  # it failed behind the write, at the look back
        assert not [step for step in cache.writes if "cache-index" in step or "remove" in step]
        assert cache.view().served == good.served
    assert reads > 10


async def test_a_refusal_is_obeyed_until_forced() -> None:
    """No root, or over half of the bytes: nothing happens without force."""
    cache = Cache()
    await push_things(ModelRepository(cache.storage, nothing), [LIB], [], cache.now)
    cache.pass_days(2)
    with pytest.raises(Error, match="no root"):
        await cache.collect(force=False)
    assert cache.writes == []
    await cache.collect()
    assert cache.view().condemned == 1


async def test_what_is_not_ours_is_never_deleted() -> None:
    """A former index of ours goes after the grace; other manifests without a tag, and other tags, stay."""
    cache = Cache()
    await cache.publish(LIB, WEB1)
    foreign = b'{"schemaVersion":2,"manifests":[],"mediaType":"%s"}' % media_type.IMAGE_INDEX.encode()
    cache.storage.manifests[Digest.of(foreign)] = foreign
    tagged = SegmentTag(CREATED - 99 * DAY, Digest.of(foreign))
    cache.storage.tags[str(tagged)] = tagged.manifest
    other = foreign.replace(b"2", b"2 ")
    cache.storage.manifests[Digest.of(other)] = other
    former = CacheIndex().render()
    cache.storage.manifests[Digest.of(former)] = former
    cache.pass_days(2)
    await cache.collect()
    cache.pass_days(31)
    _, collected = await cache.collect()
    assert Digest.of(former) in collected.deleted
    assert {Digest.of(foreign), Digest.of(other)} <= cache.storage.manifests.keys()
    del cache.storage.tags[str(tagged)]
    assert cache.view().good == {LIB.base_name, WEB1.base_name}


async def test_what_the_repository_refuses_to_delete_is_kept() -> None:
    """A version with too many downloads stays; the others go all the same, and the next run asks again."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(thing)
        cache.pass_days(31)
    for days in (30, 0.1):
        await cache.collect()
        cache.pass_days(days)

    def refuse(step: str) -> None:
        if step.startswith("remove"):
            raise RegistryError("model: over 5,000 downloads", status=400)

    cache.fail = refuse
    plan, collected = await cache.collect()
    assert plan.delete or not collected.refused
    await cache.collect()
    cache.pass_days(1)
    plan, collected = await cache.collect()
    assert [manifest for manifest, _ in collected.refused] == [
        *(former.digest for former in plan.sweep),
        *(one.manifest for one in plan.delete),
    ]
    assert collected.refused
    cache.fail = lambda _step: None
    _, again = await cache.collect()
    assert set(again.deleted) == {manifest for manifest, _ in collected.refused}


async def test_a_stale_index_over_a_newer_one_costs_nothing() -> None:
    """A publisher read before gc's write and wrote after it: marks start anew, and nothing else is lost."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(LIB, thing)
        cache.pass_days(31)
    stale = cache.storage.tags[INDEX_TAG]
    await cache.collect()
    assert cache.view().condemned == 1
    cache.storage.tags[INDEX_TAG] = stale
    assert cache.view().good >= {LIB.base_name, WEB2.base_name}
    cache.pass_days(2)
    await cache.collect()
    assert cache.view().condemned >= 1
    assert cache.view().good == {LIB.base_name, WEB2.base_name}


async def test_a_dry_run_writes_nothing_and_says_what_a_run_does() -> None:
    """What is shown is what happens."""
    cache = Cache()
    for thing in (WEB1, WEB2):
        await cache.publish(LIB, thing)
        cache.pass_days(31)
    prepared = await prepare_gc(cache.repository(), cache.remover, GcOptions(), clock=lambda: cache.now)
    assert cache.writes == []
    plan, _ = await cache.collect()
    assert prepared.plan.rows() == plan.rows()


async def test_a_bomb_for_a_table_is_refused() -> None:
    """A small blob can inflate to anything."""
    cache = Cache()
    await cache.publish(LIB)
    [segment] = (await read_listing(ModelRepository(cache.storage, nothing))).segments
    bomb = zstandard.ZstdCompressor().compress(bytes(65 * 1024 * 1024))
    manifest = cache.storage.manifests[segment.manifest]
    content = manifest.replace(str(segment.table).encode(), str(Digest.of(bomb)).encode())
    cache.storage.blobs[Digest.of(bomb)] = bomb
    cache.storage.manifests = {Digest.of(content): content}
    cache.storage.tags = {str(SegmentTag(CREATED, Digest.of(content))): Digest.of(content)}
    with pytest.raises(FormatError, match="when inflated"):
        await cache.collect()

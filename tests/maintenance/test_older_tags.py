"""Caches whose segments older versions tagged, in upper case, all of them or some."""

from datetime import timedelta
from itertools import count

import pytest

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import read_listing, read_union
from nixcache_oci.cache.progress import SILENT
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import SegmentTag
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.errors import RegistryError
from nixcache_oci.maintenance.cache_mirror import Mirror
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.maintenance.repair import writing
from nixcache_oci.maintenance.repair.repair_plan import RepairPlan
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, push_things, sweep_blobs
from tests.maintenance.served import Reader
from tests.support.interleaving import no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

DAY = timedelta(days=1)
LIB = Thing("lib")
WEB1, WEB2 = (Thing(f"web-{number}", (LIB.base_name,), size=1000) for number in (1, 2))


def as_before(tag: str) -> str:
    """Spell a segment's tag as older versions did."""
    parsed = SegmentTag.parse(tag)
    return tag if parsed is None else tag[:8] + tag[8:24].upper() + tag[24:]


class Cache:
    """A repository, a clock, and whose tags are respelt after each publish: every ``each``-th."""

    def __init__(self, each: int) -> None:
        self.storage = ModelStorage()
        self.remover = ModelRemover(self.storage, nothing)
        self.now = CREATED
        self.repository = ModelRepository(self.storage, nothing)
        self._each = each
        self._numbers = count()

    def respell(self) -> None:
        for tag in [tag for tag in self.storage.tags if tag == str(SegmentTag.parse(tag))]:
            if next(self._numbers) % self._each == 0:
                self.storage.tags[as_before(tag)] = self.storage.tags.pop(tag)

    async def publish(self, *things: Thing) -> None:
        record = PublishRecord("main", self.now.isoformat(), self.now, (("web", things[-1].path),))
        await push_things(self.repository, things, [record], self.now)
        self.respell()

    async def collect(self, days: float) -> None:
        self.now += days * DAY
        self.remover.look(self.now)
        await collect(self.repository, self.remover, GcOptions(), lambda: self.now, force=True)
        self.respell()

    @property
    def manifests(self) -> list[SegmentTag]:
        return [tag for tag in map(SegmentTag.parse, self.storage.tags) if tag is not None]


@pytest.mark.parametrize("each", [1, 2], ids=["all", "some"])
async def test_what_is_dead_leaves_them(each: int) -> None:
    """Condemned, unlisted, deleted, as with tags in lower case: gc finds it by its tag."""
    cache = Cache(each)
    await cache.publish(LIB, WEB1)
    cache.now += DAY
    await cache.publish(WEB2)
    for days in (31, 30, 0.1, 20):
        await cache.collect(days)
    sweep_blobs(cache.storage)
    assert len(cache.manifests) == 2
    assert not any(WEB1.content in content for content in cache.storage.blobs.values())
    assert Reader(cache.storage).view().good == {LIB.base_name, WEB2.base_name}


@pytest.mark.parametrize("each", [1, 2], ids=["all", "some"])
async def test_a_lost_index_is_found_by_them(each: int) -> None:
    """Each segment counts by its tag, and is then listed again; none is taken for one without a tag."""
    cache = Cache(each)
    await cache.publish(LIB, WEB1)
    cache.now += DAY
    await cache.publish(WEB2)
    del cache.storage.tags[INDEX_TAG]
    assert len((await read_listing(cache.repository)).segments) == 2
    assert await list_segments(cache.repository, [], sleep=no_sleep)
    union = await read_union(cache.repository)
    assert (len(union.index.segments), union.untagged) == (2, ())


class UntypedRepository(ModelRepository):
    """Takes no artifactType, as GitLab does not."""

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        if b"artifactType" in content:
            raise RegistryError("unknown media type", status=400, code="MANIFEST_INVALID")
        return await super().push_manifest(tag_or_digest, content, media_type)


@pytest.mark.parametrize("kind", [ModelRepository, UntypedRepository])
async def test_one_without_its_manifest_is_taken_away(kind: type[ModelRepository]) -> None:
    """In the spelling that it is listed in; what repair puts in its place meanwhile stays nowhere."""
    cache = Cache(1)
    cache.repository = kind(cache.storage, nothing)
    await cache.publish(LIB, WEB1)
    (gone,) = cache.manifests
    del cache.storage.manifests[gone.manifest], cache.storage.tags[INDEX_TAG]
    await cache.publish(WEB2)
    union = await read_union(cache.repository)
    assert union.orphans == (gone,)
    await writing.carry_out_repair(
        cache.repository,
        cache.remover,
        RepairPlan(tags=union.orphans),
        options=SegmentOptions(),
        sleep=no_sleep,
    )
    assert len(cache.manifests) == 1
    assert (await read_union(cache.repository)).is_complete


async def test_a_mirror_adds_no_second_one() -> None:
    """What an older version mirrored has its tags: only what is new gets one."""
    source, destination = Cache(2), Cache(1)
    await source.publish(LIB, WEB1)
    await Mirror(source.repository, destination.repository, SILENT).run()
    destination.respell()
    source.now += DAY
    await source.publish(WEB2)
    await Mirror(source.repository, destination.repository, SILENT).run()
    assert len(destination.manifests) == len(set(destination.manifests)) == 2


async def test_a_mirror_goes_without_a_type_where_that_is_refused() -> None:
    """There and back: the segment is another one, of the same table, and a second run changes nothing."""
    source, untyped, back = Cache(1), Cache(1), Cache(1)
    untyped.repository = UntypedRepository(untyped.storage, nothing)
    await source.publish(LIB, WEB1)
    await Mirror(source.repository, untyped.repository, SILENT).run()
    before = dict(untyped.storage.tags)
    await Mirror(source.repository, untyped.repository, SILENT).run()
    assert untyped.storage.tags == before
    await Mirror(untyped.repository, back.repository, SILENT).run()
    assert Reader(back.storage).view().good == {LIB.base_name, WEB1.base_name}
    assert back.storage.tags[INDEX_TAG] == untyped.storage.tags[INDEX_TAG]

"""What no tag points at, at repositories that cannot list it, and may insist on an order of deleting."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import Final, Self

import pytest

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.former import VersionTag, read_former, remembering
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.repository import Remover, Repository, UntaggedVersion
from nixcache_oci.errors import ReferencedError, RegistryError
from nixcache_oci.maintenance.gc import former_reader
from nixcache_oci.maintenance.gc.collect import Collected, carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan
from nixcache_oci.maintenance.gc.idle import find_idle_note
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference
from tests.maintenance.model_publisher import ModelRemover, Thing, push_things
from tests.maintenance.served import Reader
from tests.maintenance.test_gc_plan import APP, LIB, OTHER
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_manners import PERSONAS
from tests.support.interleaving import CrashError, no_sleep
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)
OPTIONS: Final = GcOptions(retention=5 * DAY, scope_ttl=None, grace=30 * DAY, min_age=DAY)
MANNERS: Final = {
    "neither": (False, False),
    "tags first": (True, False),
    "indexes first": (False, True),
    "both": (True, True),
}


class ForgetfulRepository(ModelRepository):
    """A registry that tells nobody what has no tag, and may be known to delete nothing that is listed."""

    can_list_untagged = False


class StrictRemover(ModelRemover):
    """Deletes as a registry does that wants tags deleted first, or the indexes that list something."""

    tags_first = indexes_first = False

    async def remove(self, manifest: Digest, tags: Iterable[str] = ()) -> None:
        held = self._storage
        if self.tags_first:
            for tag in [tag for tag in tags if held.tags.get(tag) == manifest]:
                await self._before(f"remove tag {tag}")
                held.tags.pop(tag, None)
            if manifest in held.tags.values():
                raise RegistryError("model: 400 still tagged", status=400)
        indexes = (content for content in held.manifests.values() if b'"manifests"' in content)
        listed = {each["digest"] for content in indexes for each in json.loads(content)["manifests"]}
        if self.indexes_first and str(manifest) in listed and manifest in held.manifests:
            raise ReferencedError("model: 400 still referenced", status=400)
        await super().remove(manifest)

    async def untagged(self) -> list[UntaggedVersion]:
        return []


class Cache:
    """A cache with a clock, whose steps may fail."""

    def __init__(self, manners: str = "both", *, keeps_listed: bool = False) -> None:
        self.manners = manners
        self.keeps_listed = keeps_listed
        self.storage = ModelStorage()
        self.repository: Repository = self.client(self._before)
        remover = StrictRemover(self.storage, self._before)
        remover.tags_first, remover.indexes_first = MANNERS[manners]
        self.remover: Remover = remover
        self.now = CREATED
        self.steps: list[str] = []
        self.refused: list[tuple[Digest, str]] = []
        self.crash_at: int | None = None

    def client(self, before: Callable[[str], Awaitable[None]]) -> ForgetfulRepository:
        client = ForgetfulRepository(self.storage, before)
        client.keeps_listed = self.keeps_listed
        return client

    def copy(self) -> Self:
        made = type(self)(self.manners, keeps_listed=self.keeps_listed)
        for name in ("blobs", "manifests", "tags"):
            setattr(made.storage, name, dict(getattr(self.storage, name)))
        made.now = self.now
        return made

    async def _before(self, step: str) -> None:
        self.steps.append(step)
        if len(self.steps) == self.crash_at:
            raise CrashError

    async def publish(self, *things: Thing) -> None:
        roots = tuple((things[-1].path.name, thing.path) for thing in things[-1:])
        record = PublishRecord("main", self.now.isoformat(), self.now, roots)
        await push_things(self.repository, things, [record], self.now)

    async def publish_unnoticed(self) -> Digest:
        """Publish while another does, and write over its index without having read it; gives that one."""
        unnoticed: list[Digest] = []

        async def compete(step: str) -> None:
            if step.startswith(f"push manifest {INDEX_TAG}") and not unnoticed:
                await self.publish(OTHER)
                unnoticed.append(self.storage.tags[INDEX_TAG])

        later = self.now + SECOND
        record = PublishRecord("main", later.isoformat(), later, ((APP.path.name, APP.path),))
        await push_things(self.client(compete), [LIB, APP], [record], later)
        return unnoticed[0]

    async def collect(self) -> tuple[GcPlan, Collected]:
        def clock() -> datetime:
            return self.now

        prepared = await prepare_gc(self.repository, self.remover, OPTIONS, clock=clock)
        done = await carry_out_gc(
            self.repository, self.remover, prepared, force=True, clock=clock, sleep=no_sleep
        )
        return prepared.plan, done

    async def collect_daily(self, days: int, every: int = 1) -> int:
        """Run gc once a day as the program does; gives the number of runs that read everything."""
        whole = 0
        for _ in range(0, days, every):
            if await find_idle_note(self.repository, OPTIONS, self.now) is None:
                whole += 1
                _, done = await self.collect()
                self.refused += done.refused
            self.now += every * DAY
        return whole

    async def unlist(self) -> datetime:
        """Run gc until something leaves the index; gives the time of that run."""
        while not (await self.collect())[0].unlist:
            self.now += DAY
        unlisted = self.now
        self.now += DAY
        return unlisted

    async def index(self) -> CacheIndex:
        return CacheIndex.parse((await self.repository.get_manifest(INDEX_TAG)).content)

    async def change_index(self, index: CacheIndex) -> None:
        await self.repository.push_manifest(INDEX_TAG, index.render(), media_type.IMAGE_INDEX)

    async def supersede(self) -> None:
        """Publish something, and later something else, which makes the former superfluous."""
        await self.publish(OTHER)
        self.now += DAY
        await self.publish(LIB, APP)
        self.now += 6 * DAY

    @property
    def segments(self) -> set[Digest]:
        """Segments that are there, tagged or not."""
        return {digest for digest, content in self.storage.manifests.items() if b'"layers"' in content}

    @property
    def indexes(self) -> set[Digest]:
        return self.storage.manifests.keys() - self.segments

    def check_served(self) -> None:
        assert Reader(self.storage).view().good == {LIB.base_name, APP.base_name}

    def check(self) -> None:
        """What counts is served, and only that is left, beside the index and a version or two."""
        self.check_served()
        assert len(self.segments) == 1
        assert len(self.indexes) <= 3


@pytest.mark.parametrize("manners", MANNERS)
async def test_what_is_superfluous_goes_in_the_end(manners: str) -> None:
    """However a registry wants to be asked; and then most runs read tags and index alone."""
    cache = Cache(manners)
    await cache.supersede()
    [old] = [one.manifest for one in (await cache.index()).segments if one.created == CREATED]
    await cache.collect_daily(120)
    cache.check()
    assert old not in cache.storage.manifests
    assert cache.refused == []
    assert await cache.collect_daily(120) <= 16
    cache.check()


@pytest.mark.parametrize("manners", ["tags first", "both"])
@pytest.mark.parametrize("days", [-1, 0, 31])
async def test_a_crash_at_any_step_loses_nothing(manners: str, days: int) -> None:
    """In the run that unlists, the one that deletes, and the one at the end: what lost its tag is found."""
    before = Cache(manners)
    await before.supersede()
    await before.unlist()
    if days < 0:  # the same once more, up to the day before
        start, before = before.now - 2 * DAY, Cache(manners)
        await before.supersede()
        while before.now <= start:
            await before.collect()
            before.now += DAY
    elif days:
        await before.collect()
        before.now += days * DAY
    for step in count(1):
        cache = before.copy()
        cache.crash_at = step
        try:
            await cache.collect()
            assert step > 10
            break
        except CrashError:
            cache.crash_at = None
        cache.check_served()
        await cache.collect_daily(110, every=10)
        cache.check()


async def test_a_version_goes_when_the_grace_is_over() -> None:
    """It is remembered from when it was replaced, and neither sooner nor later deleted."""
    cache = Cache("neither")
    await cache.publish(OTHER)
    former = cache.storage.tags[INDEX_TAG]
    cache.now += 2 * DAY
    await cache.publish(LIB, APP)
    assert read_former(await cache.index()) == {former: CREATED + 2 * DAY}
    cache.now += OPTIONS.grace
    await cache.collect()
    assert former in cache.storage.manifests
    cache.now += SECOND
    _, done = await cache.collect()
    assert former in done.deleted
    assert former not in cache.storage.manifests


async def test_what_an_index_lists_waits_without_failing() -> None:
    """It is told until when; a run that finds nothing else to do notes that, too."""
    cache = Cache("indexes first")
    await cache.supersede()
    unlisted = await cache.unlist()
    plan, done = await cache.collect()
    [waiting] = plan.delete
    assert done.waiting == ((waiting.manifest, unlisted + OPTIONS.grace),)
    assert not done.refused
    cache.now += DAY
    await cache.collect_daily(2)
    note = await find_idle_note(cache.repository, OPTIONS, cache.now)
    assert note is not None
    assert note.until <= unlisted + OPTIONS.grace


@pytest.mark.parametrize("manners", ["indexes first", "both"])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "learned"])
async def test_what_was_overwritten_unnoticed_goes_by_its_tag(manners: str, *, is_known: bool) -> None:
    """Where it would hold its segments for ever: at registries that are known for it, or once found out."""
    cache = Cache(manners, keeps_listed=is_known)
    if not is_known:
        await cache.publish(OTHER)
        cache.now += DAY
        await cache.publish(Thing("early"))
        cache.now += 6 * DAY
        await cache.collect_daily(40)
    unnoticed = await cache.publish_unnoticed()
    assert unnoticed in cache.storage.manifests
    assert unnoticed not in read_former(await cache.index())
    cache.now += DAY
    await cache.collect_daily(120)
    cache.check_served()
    assert cache.refused == []
    assert len(cache.segments) == 1
    assert unnoticed not in cache.storage.manifests
    assert len(cache.indexes) <= 4
    assert len(cache.storage.tags) <= 2 + len(cache.indexes)


@pytest.mark.parametrize("manners", ["indexes first", "both"])
async def test_a_writer_that_dies_between_its_two_writes_leaves_no_trace(manners: str) -> None:
    """Its version never counted; it goes when it is old, whatever its clock said."""
    for days in (0, 10_000):
        cache = Cache(manners, keeps_listed=True)
        await cache.publish(OTHER)

        async def die(step: str) -> None:
            if step.startswith(f"push manifest {INDEX_TAG} "):
                raise CrashError

        there, now = cache.storage.tags[INDEX_TAG], cache.now
        cache.now += days * DAY
        with pytest.raises(CrashError):
            await push_things(cache.client(die), [Thing("unfinished")], [], cache.now)
        assert cache.storage.tags[INDEX_TAG] == there
        cache.now = now + DAY
        await cache.publish(LIB, APP)
        await cache.collect_daily(120)
        assert cache.refused == []
        assert len(cache.indexes) <= 3


async def test_a_gc_that_dies_between_tag_and_version_finds_it_again() -> None:
    """Where the tag has to go first, the index knows the version by then."""
    cache = Cache("both", keeps_listed=True)
    unnoticed = await cache.publish_unnoticed()
    cache.now += OPTIONS.grace + DAY
    cache.steps.clear()
    trial = cache.copy()
    await trial.collect()
    cache.crash_at = trial.steps.index(f"remove {unnoticed}") + 1
    with pytest.raises(CrashError):
        await cache.collect()
    cache.crash_at = None
    assert unnoticed in cache.storage.manifests.keys() - cache.storage.tags.values()
    await cache.collect_daily(40)
    assert unnoticed not in cache.storage.manifests


async def test_tags_of_versions_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who lists the tags reads them: beyond the newest, a day is enough."""
    monkeypatch.setattr(former_reader, "MOST_TAGGED", 5)
    cache = Cache("indexes first", keeps_listed=True)
    for number in range(12):
        await cache.publish(Thing(f"thing-{number}"))
        cache.now += timedelta(hours=6)
    _, done = await cache.collect()
    # The last four were written within a day, one of them is the index, and one was written by this run.
    assert len(done.deleted) == 6
    assert sum(VersionTag.parse(tag) is not None for tag in cache.storage.tags) == 7


async def test_an_index_that_nobody_remembers_is_a_refusal() -> None:
    """Another tool may have copied it, or two writers met: the registry's own rules have to delete it."""
    cache = Cache("indexes first")
    await cache.publish(OTHER)
    unknown = (await cache.repository.get_manifest(INDEX_TAG)).content + b" "
    cache.storage.manifests[Digest.of(unknown)] = unknown
    cache.now += DAY
    await cache.publish(LIB, APP)
    await cache.collect_daily(80)
    _, done = await cache.collect()
    assert done.waiting == ()
    [(_, reason)] = done.refused
    assert "still referenced; none that this cache remembers is left" in reason
    del cache.storage.manifests[Digest.of(unknown)]
    await cache.collect_daily(40)
    cache.check()


async def test_what_earlier_versions_unlisted_is_remembered_first() -> None:
    """Before a tag is deleted, the index knows the manifest: whoever crashes then finds it again."""
    cache = Cache()
    await cache.supersede()
    await cache.unlist()
    index = await cache.index()
    [old] = cache.segments - {segment.manifest for segment in index.segments}
    annotations = {**index.image_index.annotations}
    del annotations[media_type.ANNOTATION_FORMER]
    await cache.change_index(replace(index, image_index=replace(index.image_index, annotations=annotations)))
    cache.steps.clear()
    await cache.collect()
    steps = [step.partition(" segment-")[0] for step in cache.steps]
    assert steps.index(f"push manifest {INDEX_TAG} {media_type.IMAGE_INDEX}") < steps.index("remove tag")
    assert old in read_former(await cache.index())


async def test_a_tag_of_a_users_keeps_a_version() -> None:
    """Whoever tagged a version of the index as a backup finds it; digests among the tags keep nothing."""
    cache = Cache("neither")
    await cache.publish(OTHER)
    former = cache.storage.tags["backup"] = cache.storage.tags[INDEX_TAG]
    cache.now += DAY
    await cache.publish(LIB, APP)
    cache.storage.tags[f"sha256:{former.hex}"] = former
    await cache.collect_daily(70)
    assert former in cache.storage.manifests
    del cache.storage.tags["backup"]
    await cache.collect_daily(40)
    assert former not in cache.storage.manifests


async def test_many_tags_of_others_keep_all(caplog: pytest.LogCaptureFixture) -> None:
    """What they point at costs a request each."""
    cache = Cache()
    await cache.publish(OTHER)
    former = cache.storage.tags[INDEX_TAG]
    await cache.publish(LIB, APP)
    for number in range(former_reader.MOST_OTHER_TAGS + 1):
        cache.storage.tags[f"v{number}"] = cache.storage.tags[INDEX_TAG]
    await cache.collect_daily(40)
    assert former in cache.storage.manifests
    assert "101 tags of others" in caplog.text


async def test_too_many_versions_go_before_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is published to all day does not fill its index with what it was."""
    monkeypatch.setattr(former_reader, "MOST_YOUNG", 5)
    cache = Cache("neither")
    for number in range(12):
        await cache.publish(Thing(f"thing-{number}"))
        cache.now += timedelta(hours=6)
    _, done = await cache.collect()
    # Eleven were replaced, the last four within a day.
    assert len(done.deleted) == 6
    await cache.collect_daily(10)
    assert len(cache.indexes) <= 7


async def test_what_is_gone_is_forgotten_in_time() -> None:
    """Somebody else may have deleted it: that is noted with the next write, or when it is worth one."""
    cache = Cache()
    await cache.publish(LIB, APP)
    gone = [Digest.of(f"gone {number}".encode()) for number in range(101)]
    await cache.change_index(remembering(await cache.index(), gone, cache.now))
    cache.now += DAY / 2
    await cache.publish(LIB, APP)  # what it replaced is due soon, so the run below notes no rest
    cache.now += OPTIONS.grace
    await cache.collect()
    assert not set(gone) & read_former(await cache.index()).keys()


async def test_only_a_caches_own_manifests_go() -> None:
    """Whoever may write the index does not delete an image by it, nor what the index lists."""
    cache = Cache()
    await cache.publish(LIB, APP)
    image = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}'
    cache.storage.manifests[Digest.of(image)] = image
    forged = [Digest.of(image), *cache.segments, cache.storage.tags[INDEX_TAG]]
    index = await cache.index()
    text = " ".join(f"{one.hex} 2026-01-01T00:00:00Z" for one in forged)
    annotations = {**index.image_index.annotations, media_type.ANNOTATION_FORMER: text}
    await cache.change_index(replace(index, image_index=replace(index.image_index, annotations=annotations)))
    await cache.collect_daily(40)
    assert Digest.of(image) in cache.storage.manifests
    cache.check_served()


@asynccontextmanager
async def cache_at(ghcr: GhcrDouble) -> AsyncIterator[Cache]:
    cache = Cache()
    reference = RegistryReference(ghcr.host, plain_http=True, repository=ghcr.repository)
    credentials = Credentials("me", ghcr.token, "the test")
    registries = [
        # One client for months asks again for what it pushed, and gc deleted: a real one lives for a run.
        Registry(
            reference, credentials, push=True, delete=is_deleting, patience=20, first_backoff_seconds=0.01
        )
        for is_deleting in (False, True)
    ]
    cache.repository, cache.remover = registries[0], RegistryRemover(registries[1])
    try:
        yield cache
    finally:
        for registry in registries:
            await registry.close()


@pytest.mark.parametrize("name", ["docker-hub", "ecr", "gitlab", "google", "harbor", "quay"])
async def test_registries_with_an_order_of_their_own(name: str) -> None:
    """With the real clients, at a server with their manners of deleting: what is superfluous goes."""
    with GhcrDouble() as ghcr:
        ghcr.behave(replace(PERSONAS[name], name_parts=None))
        async with cache_at(ghcr) as cache:
            await cache.supersede()
            await cache.collect_daily(84, every=6)
            listed = {segment.manifest for segment in (await cache.index()).segments}
        held = ghcr.manifests(ghcr.repository)
        assert {digest for digest, content in held.items() if b'"layers"' in content} == listed
        assert len(listed) == 1
        assert len(held) <= 4

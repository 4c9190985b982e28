"""A cache at a registry that tells nobody what has no tag, and may insist on an order of deleting."""

import json
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Final, Self

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.repository import Remover, Repository, UntaggedVersion
from nixcache_oci.errors import ReferencedError, RegistryError
from nixcache_oci.maintenance.gc.collect import Collected, carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan
from nixcache_oci.maintenance.gc.idle import find_idle_note
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import ModelRemover, Thing, push_things
from tests.maintenance.served import Reader
from tests.maintenance.test_gc_plan import APP, LIB, OTHER
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

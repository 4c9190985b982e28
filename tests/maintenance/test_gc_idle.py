"""A gc that reads tags and index alone: only where reading everything would have found nothing to do."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import PinRecord, PublishRecord, Record, UnpinRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.errors import RegistryError
from nixcache_oci.maintenance.gc.collect import carry_out_gc, mark, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan, plan_gc
from nixcache_oci.maintenance.gc.idle import IdleNote, find_idle_note
from nixcache_oci.maintenance.gc.state import FormerIndex, GcState, Place, StoredSegment
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import ModelRemover, Thing, push_things
from tests.maintenance.test_gc_plan import APP, GOOD, LIB, OLD_APP, OLD_LIB, OTHER, published, stored
from tests.support.interleaving import no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
OPTIONS = GcOptions(
    retention=20 * DAY, scope_ttl=50 * DAY, grace=30 * DAY, min_age=3 * DAY, segments_of_a_class=2
)
THINGS = [Thing("a"), Thing("b"), Thing("c", (Thing("a").base_name,)), Thing("d", is_large=True)]


def shape_of(plan: GcPlan) -> object:
    """Tell what a plan does, and to what."""
    return (
        [sorted(one.manifest for one in group) for group in (plan.keep, plan.lift, plan.wait, plan.condemn)],
        [[source.manifest for source in one.sources] for one in plan.replacements],
        [sorted(one.manifest for one in group) for group in (plan.unlist, plan.delete)],
        [one.digest for one in plan.sweep],
        plan.refusals,
        plan.roots,
    )


PINNED = PinRecord("v", OTHER.path, CREATED + 100 * DAY, f"until {format_time(CREATED + 107 * DAY)}")
ROOTS = stored(90, LIB, APP, records=[published(90, APP)])


@pytest.mark.parametrize(
    ("day", "segments", "former"),
    [
        pytest.param(103, [GOOD, stored(100, OTHER)], (), id="the minimal age"),
        pytest.param(
            115,
            [ROOTS, stored(80, OLD_LIB, OLD_APP, records=[published(80, OLD_APP, scope="dev")]),
             stored(95, OTHER, records=[published(95, OTHER, scope="dev")])],
            (),
            id="the retention of a superseded root",
        ),
        pytest.param(
            129, [GOOD, stored(70, OTHER, records=[published(70, OTHER, scope="dev")])], (), id="a scope"
        ),
        pytest.param(107, [GOOD, stored(90, OTHER, records=[PINNED])], (), id="a pin's date"),
        pytest.param(
            109, [GOOD, stored(90, records=[UnpinRecord("v", CREATED + 109 * DAY)])], (),
            id="an unpinning of the future",
        ),
        pytest.param(120, [GOOD, stored(60, OTHER, condemned=90)], (), id="the grace of a mark"),
        pytest.param(119, [GOOD, stored(89, OTHER, condemned=70)], (), id="the grace of what its tag lists"),
        pytest.param(118, [GOOD, stored(88, OTHER, place=Place.UNLISTED)], (), id="what is unlisted"),
        pytest.param(
            112, [GOOD], (FormerIndex(Digest.of(b"former"), CREATED + 82 * DAY, 7),), id="a former index"
        ),
    ],
)  # fmt: skip
def test_each_threshold_ends_the_rest(
    day: float, segments: Sequence[StoredSegment], former: tuple[FormerIndex, ...]
) -> None:
    """The plan is the same until the rest is over, which is when it becomes another, and not before."""

    def plan_at(now: datetime) -> tuple[object, timedelta]:
        moment = Moment(now)
        made = plan_gc(GcState(now, tuple(segments), former), OPTIONS, moment)
        return shape_of(made), moment.rest

    start = CREATED + 101.5 * DAY
    at_start, rest = plan_at(start)
    assert start + rest == CREATED + day * DAY
    assert plan_at(start + rest - SECOND)[0] == at_start
    assert plan_at(start + rest + SECOND)[0] != at_start


@pytest.mark.parametrize(
    ("age", "is_past", "rest_past", "is_long_past", "rest_long_past"),
    [
        (8 * DAY, True, timedelta.max, True, timedelta.max),
        (7 * DAY, True, timedelta.max, False, timedelta(0)),
        (6 * DAY, False, DAY, False, DAY),
    ],
)
def test_only_answers_that_change_end_the_rest(
    age: timedelta, is_past: bool, rest_past: timedelta, is_long_past: bool, rest_long_past: timedelta
) -> None:
    """What is past stays past: a merged segment of this very second is as old as no minimal age asks for."""
    moment = Moment(CREATED)
    assert (moment.is_past(CREATED - age, 7 * DAY), moment.rest) == (is_past, rest_past)
    moment = Moment(CREATED)
    assert (moment.is_long_past(CREATED - age, 7 * DAY), moment.rest) == (is_long_past, rest_long_past)


class Cache:
    """A model with a clock, and a gc that skips as the program's does, beside one that never does."""

    def __init__(self, options: GcOptions = OPTIONS) -> None:
        self.storage = ModelStorage()
        self.repository = ModelRepository(self.storage, nothing)
        self.remover = ModelRemover(self.storage, nothing)
        self.options = options
        self.now = CREATED
        self.skips = 0

    def wait(self, time: timedelta) -> None:
        self.remover.look(self.now)
        self.now += time

    async def publish(self, *things: Thing, records: Sequence[Record] | None = None) -> None:
        if records is None:
            roots = tuple((thing.path.name, thing.path) for thing in things)
            records = [PublishRecord("main", self.now.isoformat(), self.now, roots)]
        await push_things(self.repository, things, records, self.now)
        self.remover.look(self.now)

    async def find_note(self) -> IdleNote | None:
        return await find_idle_note(self.repository, self.options, self.now)

    async def collect(self) -> bool:
        """Run gc; tells whether it was skipped."""
        self.remover.look(self.now)
        note = await self.find_note()
        prepared = await prepare_gc(self.repository, self.remover, self.options, clock=lambda: self.now)
        if note is not None:
            assert not prepared.plan.changes_segments, "something was to be done, and was skipped"
            assert not prepared.plan.sweep
            assert not prepared.plan.refusals
            self.skips += 1
            return True
        await carry_out_gc(
            self.repository, self.remover, prepared, force=True, clock=lambda: self.now, sleep=no_sleep
        )
        self.remover.look(self.now)
        return False

    async def rest(self) -> None:
        """Publish, and collect daily until there is nothing to do."""
        await self.publish(LIB, APP)
        for _ in range(20):
            if await self.collect():
                return
            self.wait(DAY)
        raise AssertionError("it never rests")

    async def change_index(self, change: Callable[[CacheIndex], CacheIndex]) -> None:
        stored_index = await self.repository.get_manifest(INDEX_TAG)
        content = change(CacheIndex.parse(stored_index.content)).render()
        await self.repository.push_manifest(INDEX_TAG, content, media_type.IMAGE_INDEX)


ACTION = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 15)),
    st.tuples(st.just("pin"), st.integers(1, 60)),
    st.tuples(st.just("unpin"), st.just(0)),
    st.tuples(st.just("gc"), st.integers(0, 80)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            ACTION,
            st.one_of(st.sampled_from([0, 1, 71 * 3600, 72 * 3600, 240 * 3600]), st.integers(0, 5 * 86400)),
        ),
        min_size=6,
        max_size=30,
    )
)
async def test_a_run_that_is_skipped_would_have_done_nothing(
    history: list[tuple[tuple[str, int], int]],
) -> None:
    """At any time, after any history: where the note says that nothing is to be done, the plan is empty."""
    cache = Cache()
    await cache.publish(*THINGS)
    for (action, number), seconds in history:
        cache.wait(timedelta(seconds=seconds))
        if action == "publish":
            await cache.publish(*(thing for bit, thing in enumerate(THINGS) if number >> bit & 1))
        elif action == "pin":
            keep = f"until {format_time(cache.now + number * DAY)}"
            await cache.publish(records=[PinRecord("v", THINGS[3].path, cache.now, keep)])
        elif action == "unpin":
            await cache.publish(records=[UnpinRecord("v", cache.now)])
        else:
            for _ in range(4):
                await cache.collect()
                cache.wait(timedelta(days=number) / 4)


async def test_an_idle_cache_rests_most_of_its_time() -> None:
    """A year with a gc a day, and one publish: all but a few runs are skipped, and what is due is done."""
    cache = Cache(replace(OPTIONS, scope_ttl=None))
    await cache.publish(OTHER)
    cache.wait(DAY)
    await cache.publish(LIB, APP)
    for _ in range(365):
        await cache.collect()
        cache.wait(DAY)
    assert cache.skips > 270
    assert not any(OTHER.path.base_name.encode() in content for content in cache.storage.manifests.values())
    # Of the index, with former versions within the grace, and one segment: the other was deleted.
    assert sum(tag.startswith("segment-") for tag in cache.storage.tags) == 1
    assert len(cache.storage.manifests) <= 6


def lose_segments(index: CacheIndex) -> CacheIndex:
    return replace(index, segments=())


def move_watermark(index: CacheIndex) -> CacheIndex:
    return replace(index, watermark=index.watermark + SECOND)


def condemn(index: CacheIndex) -> CacheIndex:
    return replace(index, segments=tuple(mark(segment, CREATED) for segment in index.segments))


def spoil_note(index: CacheIndex) -> CacheIndex:
    annotations = {**index.image_index.annotations, media_type.ANNOTATION_IDLE: "yes"}
    return replace(index, image_index=replace(index.image_index, annotations=annotations))


@pytest.mark.parametrize("change", [lose_segments, move_watermark, condemn, spoil_note])
async def test_any_other_index_is_read_whole(change: Callable[[CacheIndex], CacheIndex]) -> None:
    """A writer that carries the note over, or loses the list, does not keep gc from reading."""
    cache = Cache()
    await cache.rest()
    await cache.change_index(change)
    assert await cache.find_note() is None


@pytest.mark.parametrize(
    "records", [None, [UnpinRecord("v", CREATED)], [PinRecord("v", LIB.path, CREATED, "forever")]]
)
async def test_whoever_publishes_ends_the_rest(records: list[Record] | None) -> None:
    """Even if another writer has overwritten the index since: the tag is there."""
    cache = Cache()
    await cache.rest()
    index = cache.storage.tags[INDEX_TAG]
    await cache.publish(LIB, records=records)
    assert await cache.find_note() is None
    cache.storage.tags[INDEX_TAG] = index
    assert await cache.find_note() is None


@pytest.mark.parametrize(
    "options",
    [
        replace(OPTIONS, retention=DAY),
        replace(OPTIONS, scope_ttl=None),
        replace(OPTIONS, grace=29 * DAY),
        replace(OPTIONS, min_age=DAY),
        replace(OPTIONS, segments_of_a_class=3),
        replace(OPTIONS, public_keys=(SecretKey.generate("k-1").public_key,)),
        replace(OPTIONS, segments=replace(OPTIONS.segments, max_layers=77)),
    ],
)
async def test_other_options_may_find_something(options: GcOptions) -> None:
    """The note holds for the options that it was made with."""
    cache = Cache()
    await cache.rest()
    cache.options = options
    assert await cache.find_note() is None


async def test_a_clock_that_was_set_back_skips_nothing() -> None:
    """Comparisons that were made later may come out differently before."""
    cache = Cache()
    await cache.rest()
    note = await cache.find_note()
    assert note is not None
    for now, is_idle in (
        (note.since - SECOND, False),
        (note.since, True),
        (note.until - SECOND, True),
        (note.until, False),
    ):
        cache.now = now
        assert (await cache.find_note() is not None) == is_idle


async def test_no_note_holds_longer_than_the_grace() -> None:
    """Whoever may push can write any date, and must not keep gc away for good."""
    cache = Cache()
    await cache.rest()
    note = await cache.find_note()
    assert note is not None
    forged = replace(note, until=note.until + 9999 * DAY)

    def forge(index: CacheIndex) -> CacheIndex:
        annotations = {**index.image_index.annotations, media_type.ANNOTATION_IDLE: str(forged)}
        return replace(index, image_index=replace(index.image_index, annotations=annotations))

    await cache.change_index(forge)
    cache.now = note.since + OPTIONS.grace - SECOND
    assert await cache.find_note() == forged
    cache.now += SECOND
    assert await cache.find_note() is None


async def test_what_cannot_be_deleted_is_tried_again() -> None:
    """As long as the repository refuses, every run reads everything and asks again."""
    cache = Cache(replace(OPTIONS, scope_ttl=None))
    await cache.publish(OTHER)
    cache.wait(DAY)
    await cache.publish(LIB, APP)

    async def refuse(step: str) -> None:
        if step.startswith("remove"):
            raise RegistryError("model: over 5,000 downloads", status=400)

    cache.remover = ModelRemover(cache.storage, refuse)
    for _ in range(70):
        await cache.collect()
        cache.wait(DAY)
    cache.skips = 0
    for _ in range(20):
        await cache.collect()
        cache.wait(DAY)
    assert cache.skips == 0


async def test_a_refused_plan_is_never_noted_as_rest() -> None:
    """A run that would have been refused tells so the next time, too."""
    cache = Cache(replace(OPTIONS, min_age=5 * DAY))
    await cache.publish(OTHER, records=[])
    for _ in range(2):
        assert not await cache.collect()
        cache.wait(DAY)


async def test_damage_is_never_noted_as_rest() -> None:
    """What is condemned and cannot be read might be needed, if it could."""
    cache = Cache(replace(OPTIONS, scope_ttl=None, retention=timedelta(0)))
    await cache.publish(OTHER)
    cache.wait(DAY)
    await cache.publish(LIB, APP)
    for _ in range(5):
        await cache.collect()
        cache.wait(DAY)
    found = CacheIndex.parse((await cache.repository.get_manifest(INDEX_TAG)).content)
    [condemned] = [segment for segment in found.segments if segment.condemned is not None]
    await cache.change_index(lambda index: replace(index, watermark=index.watermark + SECOND))
    spoil_table(cache.storage, condemned)
    for _ in range(5):
        assert not await cache.collect()
        cache.wait(DAY)


def spoil_table(storage: ModelStorage, segment: Segment) -> None:
    storage.blobs[segment.table] = b"other bytes"


async def test_a_full_index_needs_no_note() -> None:
    """An index that has no room for the note stays as it is, and gc does not fail for it."""
    cache = Cache()
    await cache.rest()
    room = 1024 * 1024 - len(cache.storage.manifests[cache.storage.tags[INDEX_TAG]])

    def fill(index: CacheIndex) -> CacheIndex:
        annotations = {**index.image_index.annotations, "other": "x" * (room + 100)}
        del annotations[media_type.ANNOTATION_IDLE]
        return replace(index, image_index=replace(index.image_index, annotations=annotations))

    await cache.change_index(fill)
    index = cache.storage.tags[INDEX_TAG]
    assert not await cache.collect()
    assert cache.storage.tags[INDEX_TAG] == index

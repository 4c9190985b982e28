"""Versions of the index with a tag of their own, at registries that delete nothing that an index lists."""

from datetime import timedelta

import pytest

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.former import VersionTag, read_former
from nixcache_oci.maintenance.gc import former_reader
from tests.maintenance.model_publisher import Thing, push_things
from tests.maintenance.strict_cache import DAY, OPTIONS, Cache
from tests.maintenance.test_gc_plan import APP, LIB, OTHER
from tests.support.interleaving import CrashError


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

"""What no tag points at, at repositories that cannot list it, and may insist on an order of deleting."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.former import read_former, remembering
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.maintenance.gc import former_reader
from nixcache_oci.maintenance.gc.idle import find_idle_note
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference
from tests.maintenance.model_publisher import Thing
from tests.maintenance.strict_cache import DAY, MANNERS, OPTIONS, SECOND, Cache
from tests.maintenance.test_gc_plan import APP, LIB, OTHER
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_manners import PERSONAS
from tests.support.interleaving import CrashError
from tests.support.publish import CREATED


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

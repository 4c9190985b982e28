"""The commit: nothing is visible before it is whole, and no writer loses another's work."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import read_listing, read_union
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.errors import FormatError, NotFoundError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import parse_media_type
from tests.support.interleaving import Writer, no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish_version1

WRITERS = 4
OLD = 2
LONG_AGO = CREATED - timedelta(days=100)
A_MONTH_AGO = CREATED - timedelta(days=30)


def table(number: int, since: datetime = CREATED) -> Table:
    return Table(TableHeader(since + timedelta(minutes=number)), (), (store_object(str(number)).narinfo,))


async def write(repository: ModelRepository, number: int, pushed: list[Segment]) -> None:
    """One publisher, from its first blob to its index."""
    segment = await push_segment(repository, table(number), [])
    pushed.append(segment)
    await list_segments(repository, [segment], sleep=no_sleep)


async def move_watermark(repository: ModelRepository) -> None:
    """What gc does to the index: it lists what there is, and moves the watermark to before every writer."""
    union = await read_union(repository)
    content = replace(union.index, watermark=CREATED).render()
    await repository.push_manifest(INDEX_TAG, content, media_type.IMAGE_INDEX)


async def make_old_cache(storage: ModelStorage) -> list[Segment]:
    """Segments that only the index keeps: their tags are older than its watermark."""
    repository = ModelRepository(storage, nothing)
    old = [await push_segment(repository, table(number, LONG_AGO), []) for number in range(OLD)]
    index = CacheIndex(watermark=A_MONTH_AGO).with_segments(old)
    await repository.push_manifest(INDEX_TAG, index.render(), media_type.IMAGE_INDEX)
    return old


async def interleave(
    order: list[int], crashes: dict[int, int], *, is_new: bool
) -> tuple[ModelStorage, list[Segment]]:
    """Run writers, and one that moves the watermark, step by step in the given order, then to their ends."""
    storage = ModelStorage()
    expected = [] if is_new else await make_old_cache(storage)
    writers = [
        Writer(storage, crashes.get(number), partial(write, number=number, pushed=expected))
        for number in range(WRITERS)
    ]
    writers.append(Writer(storage, crashes.get(WRITERS), move_watermark))
    for number in order:
        await writers[number].step()
    for writer in writers:
        await writer.end()
    return storage, expected


@given(
    order=st.lists(st.integers(0, WRITERS), max_size=60),
    crashes=st.dictionaries(st.integers(0, WRITERS), st.integers(1, 12), max_size=WRITERS),
    is_new=st.booleans(),
)
@settings(max_examples=150)
def test_no_interleaving_loses_a_segment(order: list[int], crashes: dict[int, int], *, is_new: bool) -> None:
    """Whoever pushed a segment's manifest is found, whatever indexes overwrote each other, whoever died."""

    async def check() -> None:
        storage, expected = await interleave(order, crashes, is_new=is_new)
        listing = await read_listing(ModelRepository(storage, nothing))
        assert {one.manifest for one in listing.segments} >= {one.manifest for one in expected}
        # And a later writer lists them all.
        await write(ModelRepository(storage, nothing), WRITERS, expected)
        storage.tags = {tag: at for tag, at in storage.tags.items() if tag == INDEX_TAG}
        listed = (await read_listing(ModelRepository(storage, nothing))).segments
        assert {one.manifest for one in listed} >= {one.manifest for one in expected}

    asyncio.run(check())


def test_blobs_come_before_what_names_them() -> None:
    """Killed anywhere, the cache is as before: table, config, manifest under its tag, then the index."""
    steps: list[str] = []

    async def note(step: str) -> None:
        steps.append(step)

    asyncio.run(write(ModelRepository(ModelStorage(), note), 1, []))
    pushes = [step.split()[1:3] for step in steps if step.startswith("push")]
    assert [kind for kind, _ in pushes] == ["blob", "blob", "manifest", "manifest"]
    assert pushes[2][1].startswith("segment-")
    assert pushes[3][1] == "cache-index"


@pytest.mark.parametrize(
    ("overwrites", "is_confirmed", "pushes"), [(0, True, 1), (1, True, 2), (9, False, 3)]
)
def test_an_overwritten_index_is_written_again(overwrites: int, is_confirmed: bool, pushes: int) -> None:
    """The read-back shows that another writer came in between; after three tries the tag does the rest."""
    storage = ModelStorage()
    stale = CacheIndex().render()
    storage.manifests[Digest.of(stale)] = stale
    counts = {"overwrites": 0, "pushes": 0}

    async def compete(step: str) -> None:
        if step.startswith("push manifest cache-index"):
            counts["pushes"] += 1
        # The read-back comes right after each push; a stale index is there first.
        elif step == "resolve cache-index" and counts["overwrites"] < min(overwrites, counts["pushes"]):
            counts["overwrites"] += 1
            storage.tags["cache-index"] = Digest.of(stale)

    async def run() -> bool:
        repository = ModelRepository(storage, compete)
        segment = await push_segment(repository, table(1), [])
        confirmed = await list_segments(repository, [segment], sleep=no_sleep)
        listing = await read_listing(ModelRepository(storage, nothing))
        assert segment.manifest in {one.manifest for one in listing.segments}
        return confirmed is not None

    assert asyncio.run(run()) is is_confirmed
    assert counts["pushes"] == pushes


def test_what_is_listed_already_is_not_written_again() -> None:
    """Each write is a chance to overwrite another writer's."""

    async def run() -> list[str]:
        storage = ModelStorage()
        segment = await push_segment(ModelRepository(storage, nothing), table(1), [])
        steps: list[str] = []

        async def note(step: str) -> None:
            steps.append(step)

        for _ in range(2):
            assert await list_segments(ModelRepository(storage, note), [segment], sleep=no_sleep)
        return steps

    assert [step.split()[1] for step in asyncio.run(run()) if step.startswith("push")] == ["manifest"]


def test_a_registry_that_lags_is_asked_again() -> None:
    """A tag that was pushed for the first time may not be there at once; the index is whole all the same."""

    async def run() -> None:
        storage = ModelStorage()
        resolved = 0

        async def lag(step: str) -> None:
            nonlocal resolved
            if step == f"resolve {INDEX_TAG}":
                resolved += 1
                if resolved == 2:
                    raise NotFoundError("manifest unknown")

        repository = ModelRepository(storage, lag)
        segment = await push_segment(repository, table(1), [])
        assert await list_segments(repository, [segment], sleep=no_sleep)
        assert INDEX_TAG in storage.tags

    asyncio.run(run())


async def published_version1(storage: ModelStorage, seed: str) -> Digest:
    """Let the older tool write its index; gives its document."""
    await publish_version1(ModelRepository(storage, nothing), [store_object(seed)])
    document = (await read_listing(ModelRepository(storage, nothing))).version1
    assert document is not None
    return document


async def test_a_converted_index_is_replaced() -> None:
    """All segments are listed then, those of others too: no tag is too old where no index tells."""
    storage = ModelStorage()
    repository = ModelRepository(storage, nothing)
    old = await make_old_cache(storage)
    document = await published_version1(storage, "entry")
    mine = await push_segment(repository, table(1), [])
    assert await list_segments(repository, [mine], converted=document, source="https://github.com/o/n")
    index = CacheIndex.parse(storage.manifests[storage.tags[INDEX_TAG]])
    assert {one.manifest for one in index.segments} == {one.manifest for one in [*old, mine]}
    assert index.watermark == EPOCH
    assert index.source == "https://github.com/o/n"


@pytest.mark.parametrize("has_converted", [True, False])
async def test_an_index_that_was_not_converted_is_left_as_it_is(has_converted: bool) -> None:
    """Its entries are nowhere else. What was pushed is found by its tag all the same."""
    storage = ModelStorage()
    repository = ModelRepository(storage, nothing)
    converted = await published_version1(storage, "entry") if has_converted else None
    written = await published_version1(storage, "another")
    mine = await push_segment(repository, table(1), [])
    with pytest.raises(FormatError, match=r"model: cache-index is .* version 1 index.* publish again"):
        await list_segments(repository, [mine], converted=converted, sleep=no_sleep)
    listing = await read_listing(repository)
    assert listing.version1 == written
    assert [one.manifest for one in listing.segments] == [mine.manifest]


async def test_an_index_that_another_writer_converted_is_added_to() -> None:
    """Of two that convert at once, the second finds the index of the first."""
    storage = ModelStorage()
    repository = ModelRepository(storage, nothing)
    document = await published_version1(storage, "entry")
    segments = [await push_segment(repository, table(number), []) for number in range(2)]
    for segment in segments:
        assert await list_segments(repository, [segment], converted=document)
    index = CacheIndex.parse(storage.manifests[storage.tags[INDEX_TAG]])
    assert [one.manifest for one in index.segments] == [one.manifest for one in segments]


async def test_a_conversion_that_the_older_tool_overwrites_is_not_forced_upon_it() -> None:
    """Seen at the read-back, its new index is left alone: the next publish converts it."""
    storage = ModelStorage()
    document = await published_version1(storage, "entry")
    overwritten = False

    async def overwrite(step: str) -> None:
        nonlocal overwritten
        if step == f"resolve {INDEX_TAG}" and not overwritten and is_index_of_ours(storage):
            overwritten = True
            await published_version1(storage, "another")

    repository = ModelRepository(storage, overwrite)
    mine = await push_segment(repository, table(1), [])
    with pytest.raises(FormatError, match="another version 1 index"):
        await list_segments(repository, [mine], converted=document, sleep=no_sleep)
    assert overwritten
    assert not is_index_of_ours(storage)


def is_index_of_ours(storage: ModelStorage) -> bool:
    return parse_media_type(storage.manifests[storage.tags[INDEX_TAG]]) == media_type.IMAGE_INDEX

"""A conversion beside crashes, publishers, the older tool and a registry's collector: nothing is lost."""

import asyncio
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import FormatError
from tests.publisher.migration_story import (
    ALL,
    ALONE,
    BASE,
    MIDDLE,
    TOP,
    base_names,
    blob_of,
    convert,
    names_in,
    names_listed,
    path_of,
    publish_like,
    refers_to,
    version1_cache,
)
from tests.support.interleaving import CrashError, Writer, nothing
from tests.support.journey import push_with
from tests.support.model_repository import ModelRepository
from tests.support.objects import store_object
from tests.support.publish import publish_version1
from tests.support.registries import docker_registry
from tests.support.segments import read_tables

STEPS = 26  # of a publish that converts


@pytest.mark.parametrize("crash_at", range(1, STEPS + 1))
async def test_an_interrupted_conversion_goes_on(crash_at: int) -> None:
    """Whenever it ends, nothing is lost, what is listed is whole, and the next run repeats no segment."""
    storage = await version1_cache()
    steps = 0

    async def crash(_step: str) -> None:
        nonlocal steps
        steps += 1
        if steps == crash_at:
            raise CrashError

    with pytest.raises(CrashError):
        await publish_like(ModelRepository(storage, crash), store_object("mine"), 0)
    listing = await read_listing(ModelRepository(storage, nothing))
    there = names_in(await read_tables(ModelRepository(storage, nothing), listing))
    for one in (TOP, MIDDLE):
        assert not base_names(one) <= there or base_names(MIDDLE, BASE) <= there
    assert await names_listed(storage) >= base_names(*ALL)
    await publish_like(ModelRepository(storage, nothing), store_object("mine"), 1)
    listing = await read_listing(ModelRepository(storage, nothing))
    assert listing.version1 is None
    tables = await read_tables(ModelRepository(storage, nothing), listing)
    entries = [one.store_path.base_name for table in tables for one in table.narinfos]
    assert sorted(set(entries)) == sorted(base_names(*ALL, store_object("mine")))
    assert all(entries.count(name) == 1 for name in base_names(*ALL))


async def test_what_the_older_tool_writes_later_is_converted_again() -> None:
    """It knows nothing of segments, and overwrites the index that lists them; the next publish has it all."""
    storage = await version1_cache()
    await publish_like(ModelRepository(storage, nothing), store_object("mine"), 0)
    late = refers_to("late", TOP)
    await publish_version1(ModelRepository(storage, nothing), [late])
    assert await names_listed(storage) == base_names(*ALL, store_object("mine"), late)
    await publish_like(ModelRepository(storage, nothing), store_object("yours"), 1)
    storage.tags = {INDEX_TAG: storage.tags[INDEX_TAG]}
    everything = base_names(*ALL, late, store_object("mine"), store_object("yours"))
    assert await names_listed(storage) == everything


GONE = store_object("gone")


@given(
    order=st.lists(st.integers(0, 2), max_size=120),
    crashes=st.dictionaries(st.integers(0, 1), st.integers(1, STEPS + 4), max_size=2),
    has_older_tool=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_no_interleaving_of_conversions_loses_an_entry(
    order: list[int], crashes: dict[int, int], *, has_older_tool: bool
) -> None:
    """Two publishers that convert at once, crashes, and the older tool publishing meanwhile: all is kept."""

    async def older_tool(repository: ModelRepository) -> None:
        if has_older_tool:
            await publish_version1(repository, [*ALL, store_object("late")])

    async def publisher(repository: ModelRepository, number: int) -> None:
        with suppress(FormatError):  # the older tool came in between, and the user runs it again
            await publish_like(repository, store_object(f"mine-{number}"), number)

    async def check() -> None:
        storage = await version1_cache([*ALL, GONE])
        del storage.blobs[blob_of(GONE)]
        writers = [
            *(Writer(storage, crashes.get(number), partial(publisher, number=number)) for number in range(2)),
            Writer(storage, None, older_tool),
        ]
        for number in order:
            await writers[number].step()
        for writer in writers:
            await writer.end()
        assert await names_listed(storage) >= base_names(*ALL)
        expected = {*storage.tags} - {INDEX_TAG}
        # The next publish lists it all: the entries, and every segment that made it to its tag.
        await publish_like(ModelRepository(storage, nothing), store_object("last"), 9)
        storage.tags = {INDEX_TAG: storage.tags[INDEX_TAG]}
        listing = await read_listing(ModelRepository(storage, nothing))
        assert listing.version1 is None
        assert {str(segment.tag) for segment in listing.segments} > expected
        names = await names_listed(storage)
        assert names >= base_names(*ALL)
        assert not names & base_names(GONE)

    asyncio.run(check())


@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("untagged", [False, True])
def test_what_was_converted_outlives_the_collector(untagged: bool) -> None:
    """Blobs of version 1 are in no manifest, and a real registry takes them; those of segments stay."""
    missing: list[str] = []

    async def convert_and_list(client: Repository) -> None:
        conversion = await convert(client, max_layers=3)
        assert await list_segments(client, conversion.segments, converted=conversion.document)
        missing.extend(base_name for base_name, _ in conversion.missing)

    async def push_again(client: Repository) -> None:
        for one in (MIDDLE, BASE, ALONE):
            await client.push_blob(blob_of(one), one.compressed()[1])

    async def check(client: Repository) -> None:
        listing = await read_listing(client)
        assert listing.version1 is None
        tables = await read_tables(client, listing)
        assert names_in(tables) == base_names(MIDDLE, BASE, ALONE)
        for narinfo in (narinfo for table in tables for narinfo in table.narinfos):
            await read_blob(client, NarUrl.parse(narinfo.url).blob, 2**20)

    with docker_registry() as registry:
        push_with(registry, lambda client: publish_version1(client, ALL))
        registry.server.garbage_collect(untagged=untagged)
        push_with(registry, push_again)
        push_with(registry, convert_and_list)
        assert missing == [path_of(TOP).base_name]
        registry.server.garbage_collect(untagged=untagged)
        push_with(registry, check)

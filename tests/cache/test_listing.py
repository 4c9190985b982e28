"""The listing: what counts as empty, and what as an error."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from nixcache_oci.cache import listing
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import Listing, read_listing, read_union
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.errors import FormatError, LimitError, NotFoundError, RegistryError
from nixcache_oci.maintenance.gc import reading as gc_reading
from nixcache_oci.maintenance.gc.reading import read_state
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish_version1

# Of a container image; "note" is for what makes them differ.
EMPTY_MANIFEST = Manifest(None, EMPTY_CONFIG, (), {"note": "{}"}).render()


async def nothing(_step: str) -> None:
    """No hook."""


def client(storage: ModelStorage, before: Callable[[str], Awaitable[None]] = nothing) -> ModelRepository:
    return ModelRepository(storage, before)


async def push(storage: ModelStorage, seed: str, created: datetime = CREATED) -> Segment:
    table = Table(TableHeader(created), (), (store_object(seed).narinfo,))
    return await push_segment(client(storage), table, [])


def test_empty_is_the_repositorys_own_word() -> None:
    """No index and no segment's tag; other tags do not matter."""
    assert asyncio.run(read_listing(client(ModelStorage()))) == Listing()


@pytest.mark.parametrize("step", ["list tags", "resolve cache-index"])
def test_any_other_failure_is_an_error(step: str) -> None:
    """401, 403, 429, 5xx, a time-out: a writer then writes nothing, and a reader keeps what it has."""

    async def fail(at: str) -> None:
        if at == step:
            raise RegistryError("503", status=503, is_temporary=True)

    with pytest.raises(RegistryError):
        asyncio.run(read_listing(client(ModelStorage(), fail)))


@pytest.mark.parametrize("times", [1, 2])
def test_an_index_in_a_repository_that_is_not_there_is_a_contradiction(times: int) -> None:
    """No tags are not all tags: gc would condemn what they hold. Once, it was made between two requests."""

    async def run() -> Listing:
        storage = ModelStorage()
        await list_segments(client(storage), [await push(storage, "listed")])
        await push(storage, "tagged")
        left = times

        async def deny(step: str) -> None:
            nonlocal left
            if step == "list tags" and left:
                left -= 1
                raise NotFoundError("name unknown")

        return await read_listing(client(storage, deny))

    if times == 1:
        assert len(asyncio.run(run()).segments) == 2
        return
    with pytest.raises(RegistryError, match="no such repository, but has its cache-index") as raised:
        asyncio.run(run())
    assert not isinstance(raised.value, NotFoundError)
    assert raised.value.is_temporary


def test_what_is_written_to_disk_is_read_again() -> None:
    """A start from disk knows the same segments, with their marks."""

    async def run() -> None:
        storage = ModelStorage()
        await list_segments(client(storage), [await push(storage, "one")])
        await push(storage, "two")
        read = await read_listing(client(storage))
        assert len(read.segments) == 2
        assert Listing.from_json(read.to_json().encode()) == read

    asyncio.run(run())


def test_a_version_1_index_and_segments_are_both_served() -> None:
    """The older tool may have overwritten the index: every segment's tag counts then."""

    async def run() -> None:
        storage = ModelStorage()
        segment = await push(storage, "new")
        await publish_version1(client(storage), [store_object("old")])
        read = await read_listing(client(storage))
        assert read.version1 is not None
        assert [one.manifest for one in read.segments] == [segment.manifest]

    asyncio.run(run())


def test_a_segment_that_is_known_costs_no_request() -> None:
    """Only manifests that were never read are fetched."""

    async def run() -> None:
        storage = ModelStorage()
        segment = await push(storage, "one")
        steps: list[str] = []

        async def note(step: str) -> None:
            steps.append(step)

        await read_listing(client(storage, note), [segment])
        assert steps == ["list tags", "resolve cache-index"]

    asyncio.run(run())


def test_a_tag_without_its_manifest_is_looked_at_again() -> None:
    """Collected a moment ago, or pushed a moment ago to a registry that lags: nobody can tell yet."""

    async def run() -> None:
        storage = ModelStorage()
        segment = await push(storage, "one")
        del storage.manifests[segment.manifest]
        listing = await read_listing(client(storage))
        assert listing.segments == ()
        assert not listing.is_complete

    asyncio.run(run())


def test_something_else_under_a_segments_tag_is_left_out() -> None:
    """It is content-addressed, and it is not ours: it must not keep the cache from being read."""

    async def run() -> None:
        storage = ModelStorage()
        good = await push(storage, "one")
        junk = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
        tag = f"segment-20261121T031500Z-{Digest.of(junk).hex}"
        await client(storage).push_manifest(tag, junk, media_type.IMAGE_INDEX)
        listing = await read_listing(client(storage))
        assert [one.manifest for one in listing.segments] == [good.manifest]

    asyncio.run(run())


def test_an_index_that_cannot_be_read_is_an_error() -> None:
    """Not an empty cache, and not the tags alone: list and marks would be lost."""

    async def run() -> None:
        storage = ModelStorage()
        await push(storage, "one")
        junk = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
        await client(storage).push_manifest("cache-index", junk, media_type.IMAGE_INDEX)
        await read_listing(client(storage))

    with pytest.raises(FormatError):
        asyncio.run(run())


def test_the_newest_segments_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of 4 MiB names 12,000: each is a table to fetch, to open and to search."""
    monkeypatch.setattr(listing, "MAX_SEGMENTS", 2)

    async def run() -> None:
        storage = ModelStorage()
        segments = [await push(storage, str(hour), CREATED + timedelta(hours=hour)) for hour in range(5)]
        await list_segments(client(storage), segments[:3])
        read = await read_listing(client(storage))
        assert [one.manifest for one in read.segments] == [one.manifest for one in segments[:2:-1]]
        assert read.left_out == 3
        # Whoever writes the index carries all of it over.
        union = await read_union(client(storage))
        assert {one.manifest for one in union.index.segments} == {one.manifest for one in segments}
        saved = replace(read, segments=union.index.segments).to_json().encode()
        assert len(Listing.from_json(saved).segments) == 2

    asyncio.run(run())


@pytest.mark.parametrize(("name", "limit"), [("MAX_SEGMENTS", 2), ("MAX_UNLISTED_BYTES", 1000)])
def test_of_tags_that_no_index_lists_the_newest_are_followed(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    """Each costs a request. Nobody takes the others for none: the list is not complete, and gc waits."""
    monkeypatch.setattr(listing, name, limit)
    monkeypatch.setattr(listing, "_PARALLEL_REQUESTS", 1)

    async def run() -> None:
        storage = ModelStorage()
        segments = [await push(storage, str(hour), CREATED + timedelta(hours=hour)) for hour in range(5)]
        union = await read_union(client(storage))
        read = {one.manifest for one in union.index.segments}
        assert read == {one.manifest for one in segments[-len(read) :]}
        assert 2 <= len(read) < 5
        assert (union.unread, union.is_complete) == (5 - len(read), False)
        assert (await read_listing(client(storage))).left_out == union.unread
        with pytest.raises(LimitError, match="over the limit"):
            await read_state(client(storage), CREATED)

    asyncio.run(run())


def test_what_is_tagged_and_is_no_segment_is_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    """There may be thousands of it. A manifest over 1 MiB is not even parsed: nobody wrote one."""

    async def run() -> Listing:
        storage = ModelStorage()
        segment = await push(storage, "one")
        for number in range(20):
            content = EMPTY_MANIFEST.replace(b"{}", b"%d" % number + b" " * (1024 * 1024 if number else 0))
            tag = SegmentTag(CREATED, Digest.of(content))
            storage.manifests[tag.manifest] = content
            storage.tags[str(tag)] = tag.manifest
        read = await read_listing(client(storage))
        assert [one.manifest for one in read.segments] == [segment.manifest]
        return read

    assert asyncio.run(run()).is_complete
    [record] = caplog.records
    assert record.__dict__["fields"]["count"] == 20


def test_gc_reads_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deciding on the tables that fit would condemn what the others need."""
    monkeypatch.setattr(gc_reading, "TableBudget", lambda: TableBudget(most_bytes=1000))

    async def run() -> None:
        storage = ModelStorage()
        for number in range(5):
            table = Table(TableHeader(CREATED, source=str(number) + "x" * 300))
            await list_segments(client(storage), [await push_segment(client(storage), table, [])])
            if number == 0:
                assert len((await read_state(client(storage), CREATED)).segments) == 1
        with pytest.raises(LimitError, match="over the limit of 1000 bytes; gc needs all of them"):
            await read_state(client(storage), CREATED)

    asyncio.run(run())

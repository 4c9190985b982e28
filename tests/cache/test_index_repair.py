"""An index that lists a segment which is gone: nobody carries it over, and what is left is not lost."""

from collections.abc import Iterable
from datetime import timedelta

import pytest

from nixcache_oci.cache import index_repair
from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.errors import RegistryError
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.support.interleaving import no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish
from tests.support.segments import read_records, read_tables

BASE = store_object("base")
TOP = store_object("top", references=(BASE.narinfo.store_path.base_name,))
ALONE = store_object("alone")
RECORD = PublishRecord("main", "1", CREATED, (("alone", ALONE.narinfo.store_path),))


class StrictRepository(ModelRepository):
    """Refuses an index that lists a manifest which it does not have, as most registries do.

    Args:
        storage: shared.
        error: how it says so.
    """

    def __init__(self, storage: ModelStorage, error: RegistryError | None = None) -> None:
        super().__init__(storage, nothing)
        self._error = error

    async def push_manifest(self, tag_or_digest: str, content: bytes, media_type: str) -> Digest:
        if tag_or_digest == INDEX_TAG:
            index = CacheIndex.parse(content)
            if any(one.manifest not in self._storage.manifests for one in index.segments):
                raise self._error or RegistryError("refused", status=400, code="MANIFEST_BLOB_UNKNOWN")
        return await super().push_manifest(tag_or_digest, content, media_type)


def delete(storage: ModelStorage, segment: Segment, *, with_tag: bool = True) -> None:
    """Do what a retention rule does."""
    del storage.manifests[segment.manifest]
    if with_tag:
        del storage.tags[str(segment.tag)]


def blob_of(one: StoreObject) -> Digest:
    return NarUrl.parse(one.compressed()[0].url).blob


async def names(repository: ModelRepository) -> list[str]:
    tables = await read_tables(repository, await read_listing(repository))
    return sorted(one.store_path.name.removeprefix("object-") for table in tables for one in table.narinfos)


async def add(repository: ModelRepository, told: list[str]) -> None:
    """Write an index, as every verb does that writes one."""
    mine = await push_segment(repository, Table(TableHeader(CREATED + timedelta(days=1))), [])
    assert await list_segments(repository, [mine], tell=told.append, sleep=no_sleep)


async def make(storage: ModelStorage, objects: Iterable[StoreObject]) -> Segment:
    return await publish(ModelRepository(storage, nothing), objects, records=[RECORD], in_packs=False)


async def test_what_is_left_of_a_segment_is_listed_anew() -> None:
    """Its paths whose bytes are there, and its records; one line names the segment, and the remedy."""
    storage, told = ModelStorage(), list[str]()
    gone = await make(storage, [BASE, TOP, ALONE])
    delete(storage, gone)
    del storage.blobs[blob_of(BASE)]
    repository = StrictRepository(storage)
    await add(repository, told)
    listing = await read_listing(repository)
    assert gone.manifest not in {one.manifest for one in listing.segments}
    # What refers to something that is lost is left out with it.
    assert await names(repository) == ["alone"]
    assert await read_records(repository, listing) == [RECORD]
    [line] = told
    assert str(gone.tag) in line
    assert "1 path recovered, 2 lost: publish again" in line
    assert "verify --repair" in line
    await add(repository, told)
    assert len(told) == 1


async def test_what_replaces_a_segment_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the second in which that was pushed: else the refusal of the index would have no remedy."""
    monkeypatch.setattr(index_repair, "now", lambda: CREATED)
    storage, told = ModelStorage(), list[str]()
    gone = await make(storage, [ALONE])
    delete(storage, gone, with_tag=False)
    await add(StrictRepository(storage), told)
    assert gone.manifest not in storage.manifests
    assert await names(StrictRepository(storage)) == ["alone"]
    assert len(told) == 1


async def test_a_segment_without_its_table_is_left_out() -> None:
    """There is nothing that could be listed anew."""
    storage, told = ModelStorage(), list[str]()
    gone = await make(storage, [BASE, TOP])
    delete(storage, gone)
    del storage.blobs[gone.table]
    await add(StrictRepository(storage), told)
    assert await names(StrictRepository(storage)) == []
    assert "0 paths recovered, 2 lost" in told[0]


async def test_what_is_read_of_segments_that_are_gone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry may list thousands of tables of 64 MiB: what is over the limit is as lost as the rest."""
    budget = TableBudget(most_bytes=1000)
    monkeypatch.setattr(index_repair, "TableBudget", lambda: budget)
    storage, told = ModelStorage(), list[str]()
    for gone in [await make(storage, [one]) for one in (BASE, ALONE)]:
        delete(storage, gone)
    await add(StrictRepository(storage), told)
    assert len(await names(StrictRepository(storage))) == 1
    assert "and 1 more are gone, although no gc deleted them" in told[0]
    assert "1 path recovered, 1 lost" in told[0]


async def test_a_condemned_segment_that_is_gone_is_not_listed_anew() -> None:
    """Nothing needs it: it is left out, and nobody has to hear of it."""
    storage, told = ModelStorage(), list[str]()
    gone = await make(storage, [BASE])
    index = CacheIndex(segments=(mark(gone, CREATED),), watermark=CREATED)
    await ModelRepository(storage, nothing).push_manifest(INDEX_TAG, index.render(), media_type.IMAGE_INDEX)
    delete(storage, gone)
    await add(StrictRepository(storage), told)
    assert await names(StrictRepository(storage)) == []
    assert told == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "MANIFEST_BLOB_UNKNOWN"),
        (404, "MANIFEST_UNKNOWN"),
        (400, "MANIFEST_INVALID"),
        (422, ""),
        (None, "BLOB_UNKNOWN"),
    ],
)
async def test_a_refusal_is_looked_into(status: int | None, code: str) -> None:
    """A tag may have outlived its manifest: then the registry's refusal tells, whatever its words."""
    storage, told = ModelStorage(), list[str]()
    gone = await make(storage, [ALONE])
    delete(storage, gone, with_tag=False)
    await add(StrictRepository(storage, RegistryError("refused", status=status, code=code)), told)
    assert await names(StrictRepository(storage)) == ["alone"]
    assert len(told) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 413, 429, 500])
async def test_another_refusal_is_passed_on(status: int) -> None:
    """Where all that is listed is there, or the registry has other reasons, nothing is taken out."""
    storage = ModelStorage()
    await make(storage, [ALONE])

    async def refuse(step: str) -> None:
        if step.startswith(f"push manifest {INDEX_TAG}"):
            raise RegistryError("refused", status=status)

    with pytest.raises(RegistryError, match="refused"):
        await add(ModelRepository(storage, refuse), [])
    assert await names(ModelRepository(storage, nothing)) == ["alone"]


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_refused_segment_is_named(*, is_named: bool) -> None:
    """Its manifest is there, and yet the registry refuses the index for it: repair replaces it."""
    storage = ModelStorage()
    segment = await make(storage, [ALONE])
    await make(storage, [BASE])
    text = f"400 MANIFEST_BLOB_UNKNOWN ({segment.manifest})" if is_named else "400 MANIFEST_BLOB_UNKNOWN"

    async def refuse(step: str) -> None:
        if step.startswith(f"push manifest {INDEX_TAG}"):
            raise RegistryError(text, status=400, code="MANIFEST_BLOB_UNKNOWN")

    which = str(segment.tag) if is_named else "a segment that the index lists"
    with pytest.raises(RegistryError, match=f"it refuses {which}: 'nixcache-oci verify --repair'"):
        await add(ModelRepository(storage, refuse), [])


async def test_a_cache_without_tags_is_carried_over() -> None:
    """Common copiers bring no tags of segments: what is there stays listed."""
    storage, told = ModelStorage(), list[str]()
    segment = await make(storage, [ALONE])
    del storage.tags[str(segment.tag)]
    await add(StrictRepository(storage), told)
    assert await names(StrictRepository(storage)) == ["alone"]
    assert told == []


async def test_a_segment_is_replaced_once_however_often_the_index_is_written() -> None:
    """Other writers may come between: each try begins with what they wrote, and pushes nothing anew."""
    storage, told = ModelStorage(), list[str]()
    gone = await make(storage, [ALONE])
    stale = storage.manifests[storage.tags[INDEX_TAG]]
    delete(storage, gone)
    overwritten = 0

    async def overwrite(step: str) -> None:
        nonlocal overwritten
        if step == f"resolve {INDEX_TAG}" and overwritten < 2 and storage.tags[INDEX_TAG] != Digest.of(stale):
            overwritten += 1
            storage.manifests[Digest.of(stale)] = stale
            storage.tags[INDEX_TAG] = Digest.of(stale)

    await add(ModelRepository(storage, overwrite), told)
    assert overwritten == 2
    assert await names(ModelRepository(storage, nothing)) == ["alone"]
    assert len(told) == 1


@pytest.mark.parametrize("is_old", [False, True])
async def test_a_tag_that_leads_elsewhere_names_no_segment(*, is_old: bool) -> None:
    """A repair that was cut short leaves one: it does not make every later listing incomplete."""
    storage = ModelStorage()
    segment = await make(storage, [ALONE])
    delete(storage, segment)
    storage.tags.pop(INDEX_TAG)
    repository = ModelRepository(storage, nothing)
    tag = str(segment.tag)
    tag = tag[:8] + tag[8:24].upper() + tag[24:] if is_old else tag  # as older versions wrote it
    storage.tags[tag] = segment.manifest
    assert not (await read_listing(repository)).is_complete
    other = await push_segment(repository, Table(TableHeader(CREATED)), [])
    storage.tags[tag] = other.manifest
    listing = await read_listing(repository)
    assert listing.is_complete
    assert [one.manifest for one in listing.segments] == [other.manifest]

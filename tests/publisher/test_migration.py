"""The conversion of a version 1 cache: what can be had whole becomes segments, and all else is named."""

import asyncio
from dataclasses import replace

import pytest

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES, parse_version1
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest
from tests.publisher.migration_story import (
    ALL,
    ALONE,
    BASE,
    MIDDLE,
    SOURCE,
    TOP,
    any_of,
    base_names,
    blob_of,
    convert,
    names_in,
    path_of,
    version1_cache,
)
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject
from tests.support.segments import read_table, read_tables


async def test_entries_become_a_segment_and_say_the_same() -> None:
    """Narinfos are served as before, byte for byte; every NAR is a layer, so that no registry may take it."""
    key = str(SecretKey.generate("old-1").public_key)
    storage = await version1_cache(public_key=key)
    repository = ModelRepository(storage, nothing)
    conversion = await convert(repository)
    [segment] = conversion.segments
    assert (conversion.missing, conversion.skipped) == ((), ())
    table = await read_table(repository, segment.table)
    document = parse_version1(await read_blob(repository, conversion.document, MAX_DOCUMENT_BYTES))
    assert set(table.narinfos) == set(document.to_table().narinfos)
    assert table.header == TableHeader(CREATED, public_keys=(key,))
    manifest = Manifest.parse(storage.manifests[segment.manifest])
    assert manifest.annotations[media_type.ANNOTATION_SOURCE] == SOURCE
    for one in ALL:
        blob = storage.blobs[blob_of(one)]
        assert Descriptor(media_type.NAR_ZSTD, Digest.of(blob), len(blob)) in manifest.layers
    # And the index is the older tool's still: it is replaced when everything else is there.
    assert (await read_listing(repository)).version1 == conversion.document


async def test_the_index_lists_what_was_converted() -> None:
    """The whole journey: after it, the cache is of version 2 and nothing else."""
    repository = ModelRepository(await version1_cache(), nothing)
    conversion = await convert(repository, max_layers=2)
    assert await list_segments(repository, conversion.segments, converted=conversion.document)
    listing = await read_listing(repository)
    assert listing.version1 is None
    assert names_in(await read_tables(repository, listing)) == base_names(*ALL)


@pytest.mark.parametrize(
    ("gone", "left_out"),
    [
        ([ALONE], {ALONE: "its NAR"}),
        ([TOP], {TOP: "its NAR"}),
        ([MIDDLE], {MIDDLE: "its NAR", TOP: "object-middle"}),
        ([BASE], {BASE: "its NAR", MIDDLE: "object-base", TOP: "object-base"}),
        ([BASE, MIDDLE], {BASE: "its NAR", MIDDLE: "its NAR", TOP: "object-middle"}),
        (ALL, dict.fromkeys(ALL, "its NAR")),
    ],
)
async def test_a_closure_is_complete_or_not_listed(
    gone: list[StoreObject], left_out: dict[StoreObject, str]
) -> None:
    """A registry's collector may have taken blobs: whatever needs them is named, with the reason."""
    storage = await version1_cache()
    for one in gone:
        del storage.blobs[blob_of(one)]
    repository = ModelRepository(storage, nothing)
    conversion = await convert(repository)
    reasons = dict(conversion.missing)
    assert reasons.keys() == base_names(*left_out)
    for one, word in left_out.items():
        assert word in reasons[path_of(one).base_name]
    [segment] = conversion.segments
    kept = base_names(*ALL) - base_names(*left_out)
    assert names_in([await read_table(repository, segment.table)]) == kept


async def test_what_refers_to_an_entry_that_cannot_be_read_is_left_out() -> None:
    """It was in the cache, so no upstream has it."""
    storage = await version1_cache(
        [replace(BASE, narinfo=replace(BASE.narinfo, extra=(("Long", "x" * 2**20),))), MIDDLE, ALONE]
    )
    conversion = await convert(ModelRepository(storage, nothing))
    assert [name for name, _ in conversion.skipped] == [path_of(BASE).hash_part]
    assert dict(conversion.missing).keys() == base_names(MIDDLE)
    # Unless a segment has it by now.
    conversion = await convert(ModelRepository(storage, nothing), listed=any_of(BASE))
    assert conversion.missing == ()


async def test_references_come_first_and_the_record_last() -> None:
    """Killed in between, what is listed is whole: segments are found by their tags from their push on."""
    storage = await version1_cache(gc_roots=(str(path_of(TOP)), path_of(ALONE).base_name, "nonsense"))
    repository = ModelRepository(storage, nothing)
    conversion = await convert(repository, max_layers=2)
    tables = [await read_table(repository, segment.table) for segment in conversion.segments]
    order = [narinfo.store_path for table in tables for narinfo in table.narinfos]
    assert [len(table.narinfos) for table in tables] == [1, 1, 1, 1]
    assert order.index(path_of(BASE)) < order.index(path_of(MIDDLE)) < order.index(path_of(TOP))
    [*before, last] = [table.records for table in tables]
    assert before == [(), (), ()]
    roots = tuple((path.name, path) for path in (path_of(ALONE), path_of(TOP)))
    assert last == (PublishRecord("version-1", "conversion", CREATED, roots),)
    assert [name for name, _ in conversion.skipped] == ["gc_roots"]


async def test_only_roots_that_are_there_count() -> None:
    """One that lost its NAR does not; one that a segment lists does; nobody has the third."""
    everything = [str(path_of(one)) for one in (TOP, ALONE, store_object("elsewhere"))]
    storage = await version1_cache([TOP, MIDDLE, BASE], gc_roots=tuple(everything))
    del storage.blobs[blob_of(TOP)]
    repository = ModelRepository(storage, nothing)
    [segment] = (await convert(repository, listed=any_of(ALONE))).segments
    [record] = (await read_table(repository, segment.table)).records
    assert isinstance(record, PublishRecord)
    assert [path for _, path in record.roots] == [path_of(ALONE)]


async def test_many_roots_are_written() -> None:
    """A stanza has a limit; the records of one run count together."""
    objects = [store_object(f"{number}{'x' * 180}") for number in range(3000)]
    storage = await version1_cache([], gc_roots=tuple(str(path_of(one)) for one in objects))
    repository = ModelRepository(storage, nothing)
    [segment] = (await convert(repository, listed=lambda _: True)).segments
    records = (await read_table(repository, segment.table)).records
    roots = [path for record in records if isinstance(record, PublishRecord) for _, path in record.roots]
    assert sorted(roots) == sorted(map(path_of, objects))


async def test_what_is_listed_is_not_asked_about() -> None:
    """The rest costs one request a blob, sixteen at a time."""
    twins = [store_object(f"twin-{number}", contents=b"the same") for number in range(2)]
    many = [store_object(str(number)) for number in range(40)]
    storage = await version1_cache([*ALL, *twins, *many])
    asked: list[str] = []
    open_requests = most = 0

    async def note(step: str) -> None:
        nonlocal open_requests, most
        if step.startswith("stat "):
            asked.append(step.removeprefix("stat "))
            open_requests += 1
            most = max(most, open_requests)
            await asyncio.sleep(0.001)
            open_requests -= 1

    repository = ModelRepository(storage, note)
    conversion = await convert(repository, listed=any_of(*ALL))
    blobs = [str(blob_of(one)) for one in [*twins, *many]]
    assert sorted(asked) == sorted({*blobs, str(conversion.document), str(EMPTY_CONFIG.digest)})
    assert most == 16
    assert names_in([await read_table(repository, conversion.segments[0].table)]) == base_names(*twins, *many)


async def test_no_answer_is_not_taken_for_a_missing_blob() -> None:
    """Only the repository's own word makes an entry missing; with any other trouble nothing is pushed."""
    storage = await version1_cache()
    before = (dict(storage.blobs), dict(storage.tags))

    async def fail(step: str) -> None:
        if step == f"stat {blob_of(BASE)}":
            raise RegistryError("503", status=503, is_temporary=True)

    with pytest.raises(RegistryError):
        await convert(ModelRepository(storage, fail))
    assert (storage.blobs, storage.tags) == before


async def test_a_document_that_is_gone_is_an_error() -> None:
    """Never an empty cache: the index says that there is one."""
    storage = await version1_cache()
    document = (await read_listing(ModelRepository(storage, nothing))).version1
    assert document is not None
    del storage.blobs[document]
    with pytest.raises(NotFoundError):
        await convert(ModelRepository(storage, nothing))
    assert list(storage.tags) == [INDEX_TAG]


async def test_an_empty_cache_leaves_its_record() -> None:
    """It has a segment like any other publish with nothing new."""
    repository = ModelRepository(await version1_cache([]), nothing)
    [segment] = (await convert(repository)).segments
    assert (await read_table(repository, segment.table)).records == (
        PublishRecord("version-1", "conversion", CREATED),
    )

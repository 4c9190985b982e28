"""A version 1 cache of a few objects, and how its conversion is watched."""

from collections.abc import Iterable
from datetime import timedelta

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.segment import MAX_LAYERS
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES, parse_version1
from nixcache_oci.cache.writer import SegmentOptions, push_segment
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.migration import Conversion, IsListed, convert_version1
from tests.support.interleaving import no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish_version1
from tests.support.segments import read_tables

SOURCE = "https://github.com/octocat/hello"


def refers_to(seed: str, *others: StoreObject) -> StoreObject:
    return store_object(seed, references=tuple(one.narinfo.store_path.base_name for one in others))


# A closure of three, and one that stands alone.
BASE = store_object("base")
MIDDLE = refers_to("middle", BASE, store_object("upstream"))
TOP = refers_to("top", MIDDLE, store_object("top"))
ALONE = store_object("alone")
ALL = (TOP, ALONE, MIDDLE, BASE)


def path_of(one: StoreObject) -> StorePath:
    return one.narinfo.store_path


def blob_of(one: StoreObject) -> Digest:
    return NarUrl.parse(one.compressed()[0].url).blob


def base_names(*objects: StoreObject) -> set[str]:
    return {path_of(one).base_name for one in objects}


def names_in(tables: Iterable[Table]) -> set[str]:
    return {narinfo.store_path.base_name for table in tables for narinfo in table.narinfos}


def none_listed(_hash_part: HashPart) -> bool:
    return False


def any_of(*objects: StoreObject) -> IsListed:
    parts = {path_of(one).hash_part for one in objects}
    return lambda hash_part: hash_part in parts


async def convert(
    repository: Repository,
    *,
    listed: IsListed = none_listed,
    max_layers: int = MAX_LAYERS,
) -> Conversion:
    """Convert what the repository holds, and leave the index as it is."""
    document = (await read_listing(repository)).version1
    assert document is not None
    return await convert_version1(
        repository,
        document,
        listed=listed,
        now=CREATED,
        options=SegmentOptions(max_layers, source=SOURCE),
    )


async def version1_cache(
    objects: Iterable[StoreObject] = ALL,
    *,
    gc_roots: tuple[object, ...] = (),
    public_key: str | None = None,
) -> ModelStorage:
    storage = ModelStorage()
    repository = ModelRepository(storage, nothing)
    await publish_version1(repository, objects, gc_roots=gc_roots, public_key=public_key)
    return storage


async def publish_like(repository: Repository, one: StoreObject, minute: int, max_layers: int = 2) -> None:
    """What a publisher does: look, convert where there is something to convert, add its own, list it all."""
    listing = await read_listing(repository)
    converted: Conversion | None = None
    if listing.version1 is not None:
        names = names_in(await read_tables(repository, listing))
        parts = {name.partition("-")[0] for name in names}
        converted = await convert_version1(
            repository,
            listing.version1,
            listed=lambda hash_part: hash_part in parts,
            now=CREATED + timedelta(minutes=minute),
            options=SegmentOptions(max_layers),
        )
    table = Table(TableHeader(CREATED + timedelta(minutes=minute)), (), (one.narinfo,))
    mine = await push_segment(repository, table, [])
    segments = [*(converted.segments if converted else ()), mine]
    await list_segments(
        repository, segments, converted=converted.document if converted else None, sleep=no_sleep
    )


async def names_listed(storage: ModelStorage) -> set[str]:
    """What the cache lists, whichever version its index is of."""
    repository = ModelRepository(storage, nothing)
    listing = await read_listing(repository)
    names = names_in(await read_tables(repository, listing))
    if listing.version1 is not None:
        document = parse_version1(await read_blob(repository, listing.version1, MAX_DOCUMENT_BYTES))
        names |= names_in([document.to_table()])
    return names

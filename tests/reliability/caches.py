"""A cache that grows in three steps, made once and put into any number of doubles without a request."""

from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Final

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import parse_media_type
from tests.support.ghcr import GhcrDouble
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED, StoreObject, publish
from tests.support.segments import read_tables

NAME: Final = "octocat/hello/nix-cache"
NAR_BYTES: Final = 40_000
BLOBS: Final = ("blob-1", "blob-2")
PACKED: Final = ("packed-1", "packed-2")
# Two segments of each later step: one that the index lists, one that only its tag knows.
FIRST_STEP: Final = ("first-listed", "first-tagged")
SECOND_STEP: Final = ("second-listed", "second-tagged")


@dataclass(frozen=True, slots=True)
class Step:
    """All that the cache holds at a moment."""

    storage: ModelStorage
    narinfos: dict[str, NarInfo]
    """By the seed of the object."""

    def put_into(self, ghcr: GhcrDouble) -> None:
        """Let the double hold it."""
        for content in self.storage.blobs.values():
            ghcr.put_blob(NAME, content)
        tags = {digest: tag for tag, digest in self.storage.tags.items()}
        for digest, content in self.storage.manifests.items():
            if digest in tags:  # a former index has lost its tag
                ghcr.put_manifest(NAME, tags[digest], content, parse_media_type(content))

    def compressed(self, seed: str) -> bytes:
        """The bytes that a client is to get."""
        url = NarUrl.parse(self.narinfos[seed].url)
        content = self.storage.blobs[url.blob]
        return content if url.offset is None else content[url.offset : url.offset + (url.length or 0)]


def made_object(seed: str) -> StoreObject:
    return store_object(seed, contents=Random(seed).randbytes(NAR_BYTES))


async def make_steps() -> list[Step]:
    """The cache before, after its first and after its second step."""
    storage = ModelStorage()
    hour = timedelta(hours=1)
    repository = ModelRepository(storage, nothing)
    await publish(repository, [made_object(seed) for seed in BLOBS], in_packs=False)
    for number, seed in enumerate(PACKED, 1):
        await publish(repository, [made_object(seed)], created=CREATED + number * hour)
    steps = [await _snapshot(storage)]
    for number, (listed, tagged) in enumerate((FIRST_STEP, SECOND_STEP), 1):
        await publish(repository, [made_object(listed)], created=CREATED + 10 * number * hour)
        created = CREATED + (10 * number + 1) * hour
        await publish(repository, [made_object(tagged)], created=created, is_listed=False)
        steps.append(await _snapshot(storage))
    return steps


async def _snapshot(storage: ModelStorage) -> Step:
    copy = ModelStorage()
    copy.blobs, copy.manifests, copy.tags = dict(storage.blobs), dict(storage.manifests), dict(storage.tags)
    seeds = (*BLOBS, *PACKED, *FIRST_STEP, *SECOND_STEP)
    by_hash_part = {hash_part_of(seed): seed for seed in seeds}
    found = await listed(copy)
    return Step(copy, {by_hash_part[each.store_path.hash_part]: each for each in found})


async def listed(storage: ModelStorage) -> list[NarInfo]:
    """All narinfos of a cache; AssertionError where a blob that they point into is not there."""
    repository = ModelRepository(storage, nothing)
    listing = await read_listing(repository)
    assert listing.is_complete, "a tag names a manifest that is not there"
    narinfos = [one for table in await read_tables(repository, listing) for one in table.narinfos]
    for narinfo in narinfos:
        url = NarUrl.parse(narinfo.url)
        content = storage.blobs[url.blob]
        assert Digest.of(content) == url.blob
        assert (url.offset or 0) + (url.length or 0) <= len(content)
    return narinfos


async def names_in(ghcr: GhcrDouble) -> set[str]:
    """Base names of all that the double's cache lists, checked as above."""
    storage = ModelStorage()
    storage.blobs = {digest: ghcr.read_blob(digest) for digest in ghcr.blobs(NAME)}
    storage.manifests, storage.tags = ghcr.manifests(NAME), ghcr.tags(NAME)
    return {narinfo.store_path.base_name for narinfo in await listed(storage)}

"""What a mirror leaves at its destination, beside the blobs."""

from datetime import timedelta
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.former import VersionTag, read_former
from nixcache_oci.cache.progress import SILENT
from nixcache_oci.maintenance.cache_mirror import Mirror
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import Thing, push_things
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

SECOND: Final = timedelta(seconds=1)


class Mirrored:
    """A cache that grows, and its mirror at a registry that may tell, or keep, what has no tag."""

    def __init__(self, *, can_list_untagged: bool, keeps_listed: bool = False) -> None:
        self.source = ModelRepository(ModelStorage(), nothing)
        self.storage = ModelStorage()
        self.writes = 0
        self.destination = ModelRepository(self.storage, self._count)
        self.destination.can_list_untagged = can_list_untagged
        self.destination.keeps_listed = keeps_listed

    async def _count(self, step: str) -> None:
        self.writes += step.startswith("push manifest")

    async def publish(self, number: int) -> None:
        await push_things(self.source, [Thing(str(number))], [], CREATED + number * SECOND)

    async def mirror(self) -> Digest:
        """Mirror, and again, which writes nothing; gives the index."""
        await Mirror(self.source, self.destination, SILENT).run()
        before = self.writes
        await Mirror(self.source, self.destination, SILENT).run()
        assert self.writes == before
        return self.storage.tags[INDEX_TAG]

    async def index(self) -> CacheIndex:
        return CacheIndex.parse((await self.destination.get_manifest(INDEX_TAG)).content)


async def test_what_a_mirror_replaces_is_remembered() -> None:
    """Where nobody lists it, gc there deletes it then; the first copy is the source's, byte for byte."""
    cache = Mirrored(can_list_untagged=False)
    written = []
    for number in range(3):
        await cache.publish(number)
        written.append(await cache.mirror())
        if not number:
            assert written == [await cache.source.resolve(INDEX_TAG)]
    index = await cache.index()
    assert read_former(index).keys() == set(written[:-1])
    assert len(index.segments) == 3
    assert [VersionTag.parse(tag) for tag in cache.storage.tags] == [None] * 4


async def test_a_mirror_tags_its_versions_where_publishers_do() -> None:
    """Another writer may come between there, too."""
    cache = Mirrored(can_list_untagged=False, keeps_listed=True)
    await cache.publish(1)
    written = await cache.mirror()
    tags = [one for one in map(VersionTag.parse, cache.storage.tags) if one is not None]
    assert [one.manifest for one in tags] == [written]


async def test_a_mirror_is_verbatim_where_nothing_need_be_remembered() -> None:
    """At GitHub and in a layout the index keeps its digest, whatever was there before."""
    cache = Mirrored(can_list_untagged=True)
    for number in range(3):
        await cache.publish(number)
        assert await cache.mirror() == await cache.source.resolve(INDEX_TAG)

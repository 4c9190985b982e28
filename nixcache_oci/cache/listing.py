"""The listing: which segments a cache has at a moment, read from its repository.

Source: design section 2, "Index". Empty is only what the repository itself calls empty: no ``cache-index``
and no segment's tag. Whatever else goes wrong is an error, and a reader keeps what it has.
"""

import asyncio
import json
import logging
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.version1 import version1_layer
from nixcache_oci.clients.repository import Repository, StoredManifest, has_manifest
from nixcache_oci.errors import FormatError, NotFoundError, RegistryError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

_log = logging.getLogger(__name__)

# Enough to hide the round trips of a long list, few enough to be a polite client.
_PARALLEL_REQUESTS = 8

MAX_SEGMENTS: Final = 4000
"""Of a cache, as it is read. An index of 1 MiB, the largest that is written, has room for 3,000; to look for
a narinfo in 4,000 tables takes a millisecond."""
MAX_UNLISTED_BYTES: Final = 256 * 1024 * 1024
"""Of the manifests of segments that no index lists, in one look: each is fetched for its annotations."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The segments of a cache.

    Attributes:
        index: what ``cache-index`` pointed at, or None where there is none.
        segments: those that the index lists, and those that only their tags know.
        version1: the document of a version 1 cache, or None.
        is_complete: False where a tag was listed and its manifest was not there: collected a moment ago,
            or pushed a moment ago by way of a registry that lags. Worth another look soon. Also where there
            are more tags than are read.
        left_out: how many segments are not among these, for there are more than are read.
    """

    index: Digest | None = None
    segments: tuple[Segment, ...] = ()
    version1: Digest | None = None
    is_complete: bool = True
    left_out: int = 0

    @property
    def tables(self) -> tuple[Digest, ...]:
        """The blob of each table; a version 1 document is one, too."""
        return (*(segment.table for segment in self.segments), *((self.version1,) if self.version1 else ()))

    def tables_newest_first(self) -> dict[Digest, list[Segment]]:
        """Give each table once, with its segments; a version 1 document is the last, and has none."""
        tables: dict[Digest, list[Segment]] = {}
        for segment in newest_first(self.segments):
            tables.setdefault(segment.table, []).append(segment)
        return tables | ({self.version1: []} if self.version1 is not None else {})

    def to_json(self) -> str:
        """Write it for the disk."""
        return json.dumps(
            {
                "index": str(self.index) if self.index else None,
                "segments": [segment.descriptor.to_json() for segment in self.segments],
                "version1": str(self.version1) if self.version1 else None,
            }
        )

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            FormatError: it is damaged.
        """
        try:
            match json.loads(content):
                case {"index": index, "segments": list(segments), "version1": version1}:
                    read = tuple(Segment.from_descriptor(Descriptor.from_json(one)) for one in segments)
                    return cls(
                        Digest.parse(index) if index is not None else None,
                        tuple(newest_first(read)[:MAX_SEGMENTS]) if len(read) > MAX_SEGMENTS else read,
                        Digest.parse(version1) if version1 is not None else None,
                    )
        except (ValueError, AttributeError, RecursionError) as error:
            raise FormatError(f"saved index: {error}") from None
        raise FormatError("saved index: fields are missing")


@dataclass(frozen=True, slots=True)
class Union:
    """What one read of tags and index gave.

    Attributes:
        index: the index, with the segments that only their tags know listed as well; all else verbatim.
        digest: what ``cache-index`` pointed at, or None where there is none.
        version1: the document of a version 1 cache, or None.
        is_complete: see ``Listing``.
        untagged: segments that the index lists and no tag names: whoever deletes a manifest takes its tags,
            too, but a cache may also have been copied without them. ``find_missing_manifests`` tells.
        orphans: segments' tags, at or after the watermark, whose manifest is not there.
        unread: how many tags of segments that no index lists were left alone, for there are more than are
            read. An index may be written all the same, with the watermark as it was: it takes nothing away.
    """

    index: CacheIndex
    digest: Digest | None
    version1: Digest | None
    is_complete: bool
    untagged: tuple[Segment, ...] = ()
    orphans: tuple[SegmentTag, ...] = ()
    unread: int = 0

    def listing(self, gone: AbstractSet[Digest] = frozenset()) -> Listing:
        """Give what is read of it: the newest 4,000 segments.

        Args:
            gone: manifests of segments that do not count.
        """
        segments = tuple(one for one in self.index.segments if one.manifest not in gone)
        left_out = max(0, len(segments) - MAX_SEGMENTS)
        if left_out:
            segments = tuple(newest_first(segments)[:MAX_SEGMENTS])
        return Listing(self.digest, segments, self.version1, self.is_complete, left_out + self.unread)


async def read_union(repository: Repository, known: Iterable[Segment] = ()) -> Union:
    """Read all tags, then the index, each once.

    Tags come first: a segment that is pushed in between is in the index then, or in the next list of tags.

    Args:
        repository: where the cache lies.
        known: segments read before, whose manifests need not be fetched again.

    Raises:
        RegistryError: the repository could not answer.
        FormatError: ``cache-index`` is not the index of a Nix cache.
    """
    tags = await _list_tags(repository)
    stored = await _get_index(repository)
    if tags is None:
        # Either it was made meanwhile, or the registry contradicts itself: no tags are not all tags.
        tags = await _list_tags(repository) if stored is not None else []
    if tags is None:
        raise RegistryError(
            f"{repository.name}: the registry says that there is no such repository, but has its {INDEX_TAG}",
            is_temporary=True,
        )
    version1: Digest | None = None
    index = CacheIndex()
    if stored is not None and stored.media_type in media_type.MANIFESTS:
        version1 = version1_layer(Manifest.parse(stored.content)).digest
    elif stored is not None:
        # Thousands of descriptors take long enough to be in the way of others.
        index = await asyncio.to_thread(CacheIndex.parse, stored.content)
    by_manifest = {segment.manifest: segment for segment in known}
    unlisted, unread = await asyncio.to_thread(index.unlisted, tags, MAX_SEGMENTS)
    found = [by_manifest[tag.manifest] for tag in unlisted if tag.manifest in by_manifest]
    unlisted_reader = _UnlistedReader(repository)
    unknown = [tag for tag in reversed(unlisted) if tag.manifest not in by_manifest]
    read = await run_all(map(unlisted_reader.read_segment, unknown), _PARALLEL_REQUESTS)
    unlisted_reader.warn_of_others()
    found += [segment for segment in read if segment is not None]
    return Union(
        index=await asyncio.to_thread(index.with_segments, found),
        digest=stored.digest if stored is not None else None,
        version1=version1,
        is_complete=not (unlisted_reader.orphans or unlisted_reader.unread or unread),
        untagged=await asyncio.to_thread(_find_untagged, index, tags),
        orphans=tuple(sorted(unlisted_reader.orphans, key=lambda tag: (tag.created, tag.manifest))),
        unread=unread + unlisted_reader.unread,
    )


async def find_missing_manifests(repository: Repository, segments: Iterable[Segment]) -> list[Segment]:
    """Find those of these segments whose manifests are gone.

    Raises:
        RegistryError: the repository could not answer.
    """

    async def find(segment: Segment) -> Segment | None:
        return None if await has_manifest(repository, segment.manifest) else segment

    found = await run_all((find(segment) for segment in segments), _PARALLEL_REQUESTS)
    return [segment for segment in found if segment is not None]


async def read_listing(repository: Repository, known: Iterable[Segment] = ()) -> Listing:
    """Read which segments the cache has, the newest 4,000; likewise."""
    return (await read_union(repository, known)).listing()


def newest_first(segments: Iterable[Segment]) -> list[Segment]:
    """Put segments in the order in which they are read."""
    return sorted(segments, key=lambda segment: segment.created, reverse=True)


def _find_untagged(index: CacheIndex, tags: Iterable[str]) -> tuple[Segment, ...]:
    tagged = set(tags)
    return tuple(segment for segment in index.segments if str(segment.tag) not in tagged)


class _UnlistedReader:
    """One look at the segments that only their tags know.

    Attributes:
        orphans: tags whose manifest is not there.
        unread: how many were left alone.
    """

    def __init__(self, repository: Repository) -> None:
        self.orphans: list[SegmentTag] = []
        self.unread = 0
        self._repository = repository
        self._bytes = 0
        self._others: list[str] = []

    async def read_segment(self, tag: SegmentTag) -> Segment | None:
        """Read one; None where it is none of ours, or counted as orphan or unread."""
        if self._bytes > MAX_UNLISTED_BYTES:
            self.unread += 1
            return None
        try:
            stored = await self._repository.get_manifest(str(tag.manifest))
        except NotFoundError:
            # A tag that leads elsewhere names no segment: a repair that was cut short leaves one behind.
            if not await _leads_elsewhere(self._repository, tag):
                self.orphans.append(tag)
            return None
        self._bytes += len(stored.content)
        try:
            return Segment.from_manifest(stored.content)
        except FormatError as error:
            self._others.append(f"{tag}: {error}")
            return None

    def warn_of_others(self) -> None:
        """Say once what is tagged like a segment, and is none."""
        if self._others:
            fields = {"count": len(self._others), "first": self._others[0]}
            _log.warning("no segments", extra={"fields": fields})


async def _leads_elsewhere(repository: Repository, tag: SegmentTag) -> bool:
    try:
        return await repository.resolve(str(tag)) != tag.manifest
    except NotFoundError:
        return False


async def _list_tags(repository: Repository) -> list[str] | None:
    try:
        return await repository.list_tags()
    except NotFoundError:
        return None  # the repository said itself that it does not exist


async def _get_index(repository: Repository) -> StoredManifest | None:
    try:
        return await repository.get_manifest(INDEX_TAG)
    except NotFoundError:
        return None

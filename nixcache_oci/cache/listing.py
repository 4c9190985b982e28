"""The listing: which segments a cache has, read from its repository.

Source: design section 2, "Index". A cache is empty only if its repository says so: no ``cache-index`` and no
segment's tag. Everything else is an error, and readers keep what they have.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final, Self, TypeVar

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.version1 import version1_layer
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.errors import Error, FormatError, NotFoundError, RegistryError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Enough to hide round trips, few enough to be polite.
_PARALLEL_REQUESTS = 8

MAX_SEGMENTS: Final = 4000
"""Segments read of a cache. The largest index that is written, 1 MiB, holds 3,000. Look-ups do not grow with
them, but reading the cache does: each is a request, two files on disk and two maps."""
MAX_UNLISTED_BYTES: Final = 256 * 1024 * 1024
"""Manifests of unlisted segments fetched per read, for their annotations."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The segments of a cache.

    Attributes:
        index: digest of ``cache-index``, or None.
        segments: listed by the index, or found by their tags.
        version1: the document of a version 1 cache, or None.
        is_complete: False if a tag had no manifest: just collected, or just pushed to a registry that lags,
            so worth another read soon; or if there are more tags than are read.
        left_out: how many segments are over ``MAX_SEGMENTS``.
    """

    index: Digest | None = None
    segments: tuple[Segment, ...] = ()
    version1: Digest | None = None
    is_complete: bool = True
    left_out: int = 0

    @property
    def tables(self) -> tuple[Digest, ...]:
        """The blob of each table; a version 1 document counts as one."""
        return (*(segment.table for segment in self.segments), *((self.version1,) if self.version1 else ()))

    @property
    def is_absent(self) -> bool:
        """Whether there is no cache at all, as the repository itself says: no index, and no segment's tag."""
        return self.index is None and not self.tables and self.is_complete and not self.left_out

    def without_taken_in(self, unreadable: AbstractSet[Digest] = frozenset()) -> Self:
        """Leave out what merged segments took in: their tables have all of it.

        Args:
            unreadable: tables that cannot be read: what their segments took in stays.
        """
        merged = (one for one in self.segments if one.condemned is None and one.table not in unreadable)
        taken_in = {manifest for one in merged for manifest in one.merges}
        if not taken_in:
            return self
        return replace(self, segments=tuple(one for one in self.segments if one.manifest not in taken_in))

    def tables_newest_first(self) -> dict[Digest, list[Segment]]:
        """Return each table with its segments; a version 1 document comes last, with none."""
        tables: dict[Digest, list[Segment]] = {}
        for segment in newest_first(self.segments):
            tables.setdefault(segment.table, []).append(segment)
        return tables | ({self.version1: []} if self.version1 is not None else {})

    def to_json(self) -> str:
        """Write it for the disk."""
        return json.dumps(
            {
                "index": str(self.index) if self.index else None,
                "segments": [segment.descriptor for segment in self.segments],
                "version1": str(self.version1) if self.version1 else None,
            },
            default=Descriptor.to_json,  # one by one: other threads get their turn between them
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
    """The union of index and tags, as read once.

    Attributes:
        index: as read, with unlisted segments added.
        digest: of ``cache-index``, or None.
        version1: the document of a version 1 cache, or None.
        is_complete: see ``Listing``.
        tags: of the repository.
        orphans: segments' tags, at or after the watermark, without a manifest.
        unread: how many unlisted tags are over the limit. An index may still be written, with its watermark
            unchanged: they stay valid.
    """

    index: CacheIndex
    digest: Digest | None
    version1: Digest | None
    is_complete: bool
    tags: tuple[str, ...] = ()
    orphans: tuple[SegmentTag, ...] = ()
    unread: int = 0

    @property
    def untagged(self) -> tuple[Segment, ...]:
        """The segments without their tag.

        Deleting a manifest deletes its tags, but a cache may also have been copied without them:
        ``find_missing_manifests`` decides.
        """
        tagged = {tag.lower() for tag in self.tags}
        return tuple(segment for segment in self.index.segments if str(segment.tag) not in tagged)

    def listing(self, missing: AbstractSet[Digest] = frozenset()) -> Listing:
        """Return the newest ``MAX_SEGMENTS`` segments, except those with missing manifests."""
        segments = tuple(one for one in self.index.segments if one.manifest not in missing)
        left_out = max(0, len(segments) - MAX_SEGMENTS)
        if left_out:
            segments = tuple(newest_first(segments)[:MAX_SEGMENTS])
        return Listing(self.digest, segments, self.version1, self.is_complete, left_out + self.unread)


async def read_union(repository: Repository, known: Iterable[Segment] = ()) -> Union:
    """Read all tags, then the index, each once.

    Tags come first: a segment pushed in between is then in the index, or in the next list of tags.

    Args:
        repository: of the cache.
        known: segments read before, which are neither fetched nor parsed again.

    Raises:
        RegistryError: the repository could not answer.
        FormatError: ``cache-index`` is not the index of a Nix cache.
    """
    tags = await found_or_none(repository.list_tags())
    stored = await found_or_none(repository.get_manifest(INDEX_TAG))
    if tags is None:
        # Either it was created meanwhile, or the registry contradicts itself.
        tags = await found_or_none(repository.list_tags()) if stored is not None else []
    if tags is None:
        raise RegistryError(
            f"{repository.name}: the registry says that there is no such repository, but has its {INDEX_TAG}",
            is_temporary=True,
        )
    version1: Digest | None = None
    index = CacheIndex()
    known = tuple(known)
    if stored is not None and stored.media_type in media_type.MANIFESTS:
        version1 = version1_layer(Manifest.parse(stored.content)).digest
    elif stored is not None:
        # On a thread: there may be thousands of descriptors.
        index = await asyncio.to_thread(CacheIndex.parse, stored.content, known)
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
        tags=tuple(tags),
        orphans=tuple(sorted(unlisted_reader.orphans, key=lambda tag: (tag.created, tag.manifest))),
        unread=unread + unlisted_reader.unread,
    )


async def find_missing_manifests(repository: Repository, segments: Iterable[Segment]) -> list[Segment]:
    """Find the segments whose manifests are missing.

    Raises:
        RegistryError: the repository could not answer.
    """

    async def find(segment: Segment) -> Segment | None:
        return None if await has_manifest(repository, segment.manifest) else segment

    found = await run_all((find(segment) for segment in segments), _PARALLEL_REQUESTS)
    return [segment for segment in found if segment is not None]


async def read_listing(repository: Repository, known: Iterable[Segment] = ()) -> Listing:
    """Read the newest ``MAX_SEGMENTS`` segments; as ``read_union``."""
    return (await read_union(repository, known)).listing()


def require_cache(
    repository: Repository,
    listing: Listing,
    remedy: str = "check NIXCACHE_REPO, NIXCACHE_REGISTRY and NIXCACHE_IMAGE, or publish to it first",
) -> None:
    """Make sure that there is a cache: a name that is mistyped is no cache without problems.

    Raises:
        Error: there is none; says what was looked for, and the remedy.
    """
    if listing.is_absent:
        raise Error(f"{say_absent(repository.name)}: {remedy}")


def say_absent(name: str) -> str:
    """Say that there is no cache at a repository, and what was looked for."""
    return f"there is no cache at {name} (neither a tag {INDEX_TAG} nor any segment-* tag)"


def newest_first(segments: Iterable[Segment]) -> list[Segment]:
    """Sort segments in reading order."""
    return sorted(segments, key=lambda segment: segment.created, reverse=True)


class _UnlistedReader:
    """Reads the manifests of unlisted segments; ``Union`` defines orphans and unread."""

    def __init__(self, repository: Repository) -> None:
        self.orphans: list[SegmentTag] = []
        self.unread = 0
        self._repository = repository
        self._bytes = 0
        self._others: list[str] = []

    async def read_segment(self, tag: SegmentTag) -> Segment | None:
        """Read one; None if it is not a segment, an orphan, or unread."""
        if self._bytes > MAX_UNLISTED_BYTES:
            self.unread += 1
            return None
        try:
            stored = await self._repository.get_manifest(str(tag.manifest))
        except NotFoundError:
            # A tag of another manifest names no segment: an interrupted repair leaves one behind.
            if await found_or_none(self._repository.resolve(tag.listed)) in (None, tag.manifest):
                self.orphans.append(tag)
            return None
        self._bytes += len(stored.content)
        try:
            return Segment.from_manifest(stored.content)
        except FormatError as error:
            self._others.append(f"{tag}: {error}")
            return None

    def warn_of_others(self) -> None:
        """Warn once of what is tagged as a segment, but is none."""
        if self._others:
            fields = {"count": len(self._others), "first": self._others[0]}
            _log.warning("no segments", extra={"fields": fields})


async def found_or_none(answer: Awaitable[T]) -> T | None:
    """Wait for an answer of the repository; None if it is NotFoundError."""
    try:
        return await answer
    except NotFoundError:
        return None

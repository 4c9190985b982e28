"""The listing: which segments a cache has at a moment, read from its repository.

Source: design section 2, "Index". Empty is only what the repository itself calls empty: no ``cache-index``
and no segment's tag. Whatever else goes wrong is an error, and a reader keeps what it has.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

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


@dataclass(frozen=True, slots=True)
class Listing:
    """The segments of a cache.

    Attributes:
        index: what ``cache-index`` pointed at, or None where there is none.
        segments: those that the index lists, and those that only their tags know.
        version1: the document of a version 1 cache, or None.
        is_complete: False where a tag was listed and its manifest was not there: collected a moment ago,
            or pushed a moment ago by way of a registry that lags. Worth another look soon.
    """

    index: Digest | None = None
    segments: tuple[Segment, ...] = ()
    version1: Digest | None = None
    is_complete: bool = True

    @property
    def tables(self) -> tuple[Digest, ...]:
        """The blob of each table; a version 1 document is one, too."""
        return (*(segment.table for segment in self.segments), *((self.version1,) if self.version1 else ()))

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
                    return cls(
                        Digest.parse(index) if index is not None else None,
                        tuple(Segment.from_descriptor(Descriptor.from_json(one)) for one in segments),
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
            too, but a cache may also have been copied without them. ``find_gone`` tells.
        orphans: segments' tags, at or after the watermark, whose manifest is not there.
    """

    index: CacheIndex
    digest: Digest | None
    version1: Digest | None
    is_complete: bool
    untagged: tuple[Segment, ...] = ()
    orphans: tuple[SegmentTag, ...] = ()


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
            f"{repository.name}: the registry says that there is no such repository, and has its {INDEX_TAG}",
            is_temporary=True,
        )
    version1: Digest | None = None
    index = CacheIndex()
    if stored is not None and stored.media_type in media_type.MANIFESTS:
        version1 = version1_layer(Manifest.parse(stored.content)).digest
    elif stored is not None:
        index = CacheIndex.parse(stored.content)
    tagged = set(tags)
    by_manifest = {segment.manifest: segment for segment in known}
    unlisted = index.unlisted(tags)
    unknown = [tag for tag in unlisted if tag.manifest not in by_manifest]
    read = await run_all((_read_segment(repository, tag) for tag in unknown), _PARALLEL_REQUESTS)
    found = [by_manifest[tag.manifest] for tag in unlisted if tag.manifest in by_manifest]
    found += [segment for segments in read for segment in segments or ()]
    return Union(
        index=index.with_segments(found),
        digest=stored.digest if stored is not None else None,
        version1=version1,
        is_complete=None not in read,
        untagged=tuple(segment for segment in index.segments if str(segment.tag) not in tagged),
        orphans=tuple(tag for tag, segments in zip(unknown, read, strict=True) if segments is None),
    )


async def find_gone(repository: Repository, segments: Iterable[Segment]) -> list[Segment]:
    """Find those of these segments whose manifests are gone.

    Raises:
        RegistryError: the repository could not answer.
    """

    async def find(segment: Segment) -> Segment | None:
        return None if await has_manifest(repository, segment.manifest) else segment

    found = await run_all((find(segment) for segment in segments), _PARALLEL_REQUESTS)
    return [segment for segment in found if segment is not None]


async def read_listing(repository: Repository, known: Iterable[Segment] = ()) -> Listing:
    """Read which segments the cache has; arguments and errors are those of ``read_union``."""
    union = await read_union(repository, known)
    return Listing(union.digest, union.index.segments, union.version1, union.is_complete)


async def _read_segment(repository: Repository, tag: SegmentTag) -> list[Segment] | None:
    """Read a segment that only its tag knows; none where it is not ours, and None where it is not there."""
    try:
        stored = await repository.get_manifest(str(tag.manifest))
    except NotFoundError:
        # A tag that leads elsewhere names no segment: a repair that was cut short leaves one behind.
        return [] if await _leads_elsewhere(repository, tag) else None
    try:
        return [Segment.from_manifest(stored.content)]
    except FormatError as error:
        _log.warning("no segment", extra={"fields": {"tag": str(tag), "error": str(error)}})
        return []


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

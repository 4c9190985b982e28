"""The end of a commit: the index lists pushed segments. Nothing is visible before.

If writers overwrite each other's index, a segment's own tag protects it until a later writer lists it.
Source: design section 2, "Index".
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.former import VersionTag, remembering, tags_versions
from nixcache_oci.cache.index_repair import IndexRepair, Tell, may_be_about_a_child, name_child
from nixcache_oci.cache.listing import Listing, Union, found_or_none, read_union
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import FormatError, RegistryError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

_INDEX_TRIES: Final = 3
_FIRST_PAUSE_SECONDS: Final = 0.4

ChangeIndex = Callable[[Union], Awaitable[CacheIndex]]
"""Returns the index to write, given what was read."""


async def list_segments(
    repository: Repository,
    mine: Sequence[Segment],
    *,
    source: str | None = None,
    converted: Digest | None = None,
    tell: Tell | None = None,
    clock: Callable[[], datetime] = now,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Listing | None:
    """Write an index that lists these segments beside all others.

    Args:
        repository: of the cache.
        mine: segments that were pushed.
        source: URL of the GitHub repository: GHCR links the package to it.
        converted: version 1 document whose entries are in segments now: an index that holds it is replaced,
            one that holds another document is not.
        tell: see ``write_index``.
        clock: likewise.
        sleep: waits some seconds between tries.

    Returns:
        What the index lists, as read back. None if other writers interfered: the segments are found by their
        tags until one of them lists them.

    Raises:
        FormatError: the present index is neither of version 2 nor the converted one, and was left alone.
        RegistryError: the repository could not answer; nothing was written, or the write failed.
    """

    async def listing(union: Union) -> CacheIndex:
        if union.version1 not in (None, converted):
            what = "another version 1 index than a moment ago" if converted else "a version 1 index"
            raise FormatError(
                f"{repository.name}: {INDEX_TAG} is {what}, written by the older tool; it was left unchanged:"
                " publish again, which converts its entries first"
            )
        index = union.index.with_segments(mine)
        return replace(index, source=index.source or source)

    return await write_index(repository, mine, listing, tell=tell, clock=clock, sleep=sleep)


async def write_index(
    repository: Repository,
    known: Iterable[Segment],
    change: ChangeIndex,
    *,
    tell: Tell | None = None,
    clock: Callable[[], datetime] = now,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Listing | None:
    """Read tags and index once, change the index, write it, and read it back.

    A segment whose manifest is missing, though no gc deleted it, is not carried over, because registries
    refuse an index that lists it. A new segment lists what is left of it. Where nobody can list what has no
    tag, the index remembers the version that it replaces, and the segments that it lists no more; see
    ``tags_versions``, too.

    Args:
        repository: of the cache.
        known: segments that exist: their manifests are neither fetched nor looked for.
        change: returns the index to write; called again if another writer interfered.
        tell: receives a line about missing segments; None for the log.
        clock: tells since when what is replaced is no longer named.
        sleep: waits some seconds between tries.

    Returns:
        What the changed index lists, once read back; None if other writers interfered.

    Raises:
        Error: as ``change`` raises; nothing was written.
        FormatError: the present index is not one of a Nix cache, and was left alone.
        RegistryError: the repository could not answer; nothing was written, or the write failed.
    """
    known = tuple(known)
    index_repair = IndexRepair(repository, known, tell or _log.warning)
    overwritten: list[Digest] = []
    for attempt in range(_INDEX_TRIES):
        if attempt:
            await sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1))  # noqa: S311  # jitter
        union = await read_union(repository, known)
        index = await index_repair.repair(await change(union), union.untagged)
        digest = Digest.of(index.render())
        if digest != union.digest:  # else another writer wrote the same, or the last try became visible late
            time = clock()
            if not repository.can_list_untagged:
                index = remembering(index, [*_find_replaced(union, index), *overwritten], time)
            try:
                digest = await _push_index(repository, index, time)
            except RegistryError as error:
                if not may_be_about_a_child(error):
                    raise
                repaired = await index_repair.repair(index, index.segments)
                if repaired == index:
                    raise name_child(error, index) from None
                index, digest = repaired, await _push_index(repository, repaired, time)
            # Registries lag: a first push may not be visible at once.
            if await found_or_none(repository.resolve(INDEX_TAG)) != digest:
                _log.info("another writer came between")
                overwritten.append(digest)
                continue
            _log.info("index written", extra={"fields": {"digest": digest, "segments": len(index.segments)}})
        return Listing(digest, index.segments, is_complete=union.is_complete)
    return None


def _find_replaced(union: Union, index: CacheIndex) -> list[Digest]:
    """Find what is no longer named once an index is written: the former one, and what it alone lists."""
    listed = {segment.manifest for segment in index.segments}
    left = [segment.manifest for segment in union.index.segments if segment.manifest not in listed]
    return [union.digest, *left] if union.digest is not None and union.version1 is None else left


async def _push_index(repository: Repository, index: CacheIndex, time: datetime) -> Digest:
    content = index.render()
    if tags_versions(repository, index):
        # First: whatever comes between, gc finds it.
        tag = VersionTag(time, Digest.of(content))
        await repository.push_manifest(str(tag), content, media_type.IMAGE_INDEX)
    return await repository.push_manifest(INDEX_TAG, content, media_type.IMAGE_INDEX)

"""Reads what may go beside segments: former versions of the index, and what left it and has no tag.

Some repositories can list what has no tag; elsewhere the index remembers it, and some versions have tags of
their own. Source: design section 2, "Index", and section 5, promise 7.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.former import read_former
from nixcache_oci.cache.listing import found_or_none
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.segment import Segment
from nixcache_oci.clients.repository import Repository, UntaggedVersion
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.maintenance.gc.state import FormerIndex, GcState
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import parse_tag_or_digest
from nixcache_oci.wording import counted

MOST_YOUNG: Final = 1000
"""Remembered manifests that are kept for the whole grace; older ones go after the minimal age. A cache that
is published to all day would fill its index with them."""
MOST_TAGGED: Final = 100
"""The same, of versions of the index with a tag of their own: all who list the tags read those, too."""
MOST_OTHER_TAGS: Final = 100
"""Tags of others that are looked at for what they point at; where there are more, nothing is swept."""
_PARALLEL_REQUESTS: Final = 8

_log = logging.getLogger(__name__)


async def read_untagged(
    repository: Repository, versions: Sequence[UntaggedVersion], progress: Progress
) -> tuple[FormerIndex, ...]:
    """Read manifests without a tag; those that never were the index are left out: nothing else is swept."""

    async def read(version: UntaggedVersion) -> FormerIndex | None:
        found = await _read(repository, version.digest, version.created)
        return None if found is None or found.is_segment else found

    with progress.stage("reading former indexes", "version", len(versions)) as stage:
        found = await run_all(map(read, versions), _PARALLEL_REQUESTS, stage)
    return tuple(one for one in found if one is not None)


async def read_remembered(
    repository: Repository, state: GcState, options: GcOptions, moment: Moment, progress: Progress
) -> GcState:
    """Add to a state what its index remembers, or a version's tag names, and is old enough to go."""
    named = {segment.manifest for segment in state.index.segments} | {tag.manifest for tag in state.tags}
    named |= {one.digest for one in state.former_indexes}
    tagged = {tag.manifest: tag for tag in state.version_tags}
    remembered = read_former(state.index)
    since_of = {digest: tag.written for digest, tag in tagged.items()} | remembered
    ranked = sorted(since_of.keys() - named, key=lambda digest: (since_of[digest], digest))
    surplus = {*ranked[:-MOST_YOUNG], *[digest for digest in ranked if digest in tagged][:-MOST_TAGGED]}
    due: list[FormerIndex] = []
    for digest in ranked:
        since = since_of[digest]
        is_over = moment.is_long_past(since, options.grace)
        if is_over or (digest in surplus and moment.is_long_past(since, options.min_age)):
            tags = (str(tagged[digest]),) if digest in tagged else ()
            due.append(FormerIndex(digest, since, 0, is_surplus=not is_over, tags=tags))
    if not due:
        return state
    if len(state.other_tags) > MOST_OTHER_TAGS:
        text = "%s: %s of others: what they point at is not known, so nothing without a tag is deleted"
        _log.warning(text, repository.name, counted(len(state.other_tags), "tag"))
        return state
    kept = await _resolve(repository, state.other_tags)
    due = [one for one in due if one.digest not in kept]
    with progress.stage("reading former indexes", "version", len(due)) as stage:
        read = await run_all(
            (_read(repository, one.digest, one.created) for one in due), _PARALLEL_REQUESTS, stage
        )
    found = [
        replace(one, is_surplus=asked.is_surplus, tags=asked.tags)
        for asked, one in zip(due, read, strict=True)
        if one is not None
    ]
    # An index goes before the segments that it lists.
    found.sort(key=lambda one: one.is_segment)
    gone = {one.digest for one in due} - {one.digest for one in found}
    forgotten = frozenset(gone & remembered.keys())
    return replace(state, former_indexes=(*state.former_indexes, *found), forgotten=forgotten)


async def _resolve(repository: Repository, tags: Iterable[str]) -> set[Digest]:
    """Find what tags point at; some registries list digests among them, which keep nothing."""
    names = []
    for tag in tags:
        try:
            if not isinstance(parse_tag_or_digest(tag), Digest):
                names.append(tag)
        except FormatError:
            continue
    found = await run_all((found_or_none(repository.resolve(name)) for name in names), _PARALLEL_REQUESTS)
    return {digest for digest in found if digest is not None}


async def _read(repository: Repository, digest: Digest, since: datetime) -> FormerIndex | None:
    """Read a manifest without a tag; None if it is gone, or neither an index nor a segment of a cache."""
    stored = await found_or_none(repository.get_manifest(str(digest)))
    if stored is None:
        return None
    is_segment = False
    try:
        CacheIndex.parse(stored.content)
    except FormatError:
        try:
            Segment.from_manifest(stored.content)
        except FormatError:
            return None
        is_segment = True
    return FormerIndex(digest, since, len(stored.content), is_segment=is_segment)

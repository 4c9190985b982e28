"""Carries out a gc plan, in an order in which a crash at any point loses nothing.

First the replacements are pushed, each segment under its own tag; then one write of the index lists them and
marks what they replace; last, manifests are deleted that an earlier run removed from the index. After a crash
before the write, the cache is as before, with some duplicate segments; after it, the next run continues.
Where a repository may take a tag and keep its manifest, the index remembers the manifest before.

The index is the one read right before the write, changed by the plan: a segment that another writer lifted
since gc's start is not unlisted, and a mark that was set meanwhile stays.
Source: design sections 2 and 5, promises 3 to 7.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.commit import write_index
from nixcache_oci.cache.former import (
    forgetting,
    noting_keeps_listed,
    read_former,
    remembering,
    tags_versions,
)
from nixcache_oci.cache.listing import Union, read_union
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.progress import SILENT, Progress
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.clients.repository import Remover, Repository, has_manifest
from nixcache_oci.errors import Error, ReferencedError, RegistryError
from nixcache_oci.maintenance.gc.former_reader import read_remembered
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan, plan_gc
from nixcache_oci.maintenance.gc.idle import Rest, find_rest
from nixcache_oci.maintenance.gc.replacement import push_replacement
from nixcache_oci.maintenance.gc.state import GcState
from nixcache_oci.maintenance.gc.state_reader import read_state
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

# Each costs a request, until a write of the index forgets it; and such a write is another to remember.
_MOST_FORGOTTEN: Final = 100
_UNKNOWN_INDEX: Final = (
    "none that this cache remembers is left, so it is another's, or a version that was overwritten unnoticed:"
    " let the registry delete untagged manifests, as its clean-up rules do"
)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run did."""

    written: tuple[Segment, ...] = ()  # segments that were pushed to replace others
    is_index_confirmed: bool = True  # if not, nothing was deleted, and the next run continues
    deleted: tuple[Digest, ...] = ()  # manifests of segments and former indexes
    refused: tuple[tuple[Digest, str], ...] = ()  # by the repository, and why; the next run tries again
    # that former versions of the index list, and when the last of those goes
    waiting: tuple[tuple[Digest, datetime], ...] = ()
    keeps_listed: bool = False  # whether the repository refused to delete what an index lists


@dataclass(frozen=True, slots=True)
class PreparedGc:
    """A plan with the state and options that it was made from."""

    state: GcState
    options: GcOptions
    plan: GcPlan
    unchanged: timedelta  # how long time alone does not change the plan


async def prepare_gc(
    repository: Repository,
    remover: Remover,
    options: GcOptions,
    *,
    progress: Progress = SILENT,
    clock: Callable[[], datetime] = now,
) -> PreparedGc:
    """Read everything and decide; nothing is written. Errors are those of ``read_state``."""
    moment = Moment(clock())
    untagged = [
        version for version in await remover.untagged() if moment.is_long_past(version.created, options.grace)
    ]
    state = await read_state(repository, moment.now, untagged, progress)
    state = await read_remembered(repository, state, options, moment, progress)
    # A large cache takes seconds: long enough for connections to be dropped.
    plan = await asyncio.to_thread(plan_gc, state, options, moment)
    return PreparedGc(state, options, plan, moment.rest)


async def carry_out_gc(
    repository: Repository,
    remover: Remover,
    prepared: PreparedGc,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    clock: Callable[[], datetime] = now,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Collected:
    """Carry out the plan; Error if it refuses and is not forced, or the repository failed: run it again."""
    plan, options = prepared.plan, prepared.options.segments
    if plan.refusals and not force:
        raise Error(f"{repository.name}: gc did nothing: {'; '.join(plan.refusals)} (--force)")
    written: list[tuple[Segment, ...]] = []
    with progress.stage("writing what stays", "replacement", len(plan.replacements)) as stage:
        for replacement in plan.replacements:
            pushed = await push_replacement(repository, replacement, clock(), options, stage)
            written.append(tuple(pushed))
            stage.advance(1)
    segments = tuple(segment for pushed in written for segment in pushed)

    async def change(union: Union) -> CacheIndex:
        _require_version2(repository, union)
        index = change_index(union, prepared, written, clock())
        await _check_added(repository, union.index, index)
        index = forgetting(index, prepared.state.forgotten)
        if not repository.can_list_untagged:
            # What a wrong clock dated in the future would stay for ever.
            late = [tag.manifest for tag in prepared.state.version_tags if tag.written > clock()]
            index = remembering(index, [*_find_losing_tags(plan), *late], clock())
        return replace(index, source=index.source or options.source)

    is_written = plan.changes_index or _must_remember(repository, prepared)
    if is_written and not await write_index(repository, segments, change, clock=clock, sleep=sleep):
        return Collected(segments, is_index_confirmed=False)
    collected = replace(await _delete(repository, remover, prepared, progress), written=segments)
    rest = None if is_written else _find_rest(prepared, collected)
    has_learned = collected.keeps_listed and not tags_versions(repository, prepared.state.index)

    async def note(union: Union) -> CacheIndex:
        """Note that nothing is left to do, or what was found out; another writer's index may stand."""
        _require_version2(repository, union)
        index = forgetting(union.index, {*prepared.state.forgotten, *collected.deleted})
        index = noting_keeps_listed(index) if has_learned else index
        return rest.noted_in(index) if rest is not None else index

    if rest is not None or has_learned:
        await write_index(repository, (), note, clock=clock, sleep=sleep)
    return collected


def _must_remember(repository: Repository, prepared: PreparedGc) -> bool:
    """Tell whether the index has to remember what is deleted, or forget what is gone."""
    if len(prepared.state.forgotten) > _MOST_FORGOTTEN:
        return True
    remembered = read_former(prepared.state.index).keys()
    return not repository.can_list_untagged and not _find_losing_tags(prepared.plan) <= remembered


def _find_losing_tags(plan: GcPlan) -> set[Digest]:
    """Find what may lose its tag and yet stay, and then has to be found again."""
    return {one.manifest for one in plan.delete} | {one.digest for one in plan.sweep if one.tags}


def _find_rest(prepared: PreparedGc, collected: Collected) -> Rest | None:
    """Decide what to note; None if the next run finds other segments, or is refused something again."""
    plan = prepared.plan
    are_all_waiting = {one.manifest for one in plan.delete} == {manifest for manifest, _ in collected.waiting}
    if (
        (plan.changes_segments and not are_all_waiting)
        or plan.refusals
        or len(collected.deleted) < len(plan.sweep)
    ):
        return None
    unchanged = [prepared.unchanged, *(until - prepared.state.started for _, until in collected.waiting)]
    return find_rest(prepared.state, prepared.options, min(unchanged))


def _require_version2(repository: Repository, union: Union) -> None:
    if union.version1 is not None:
        raise Error(f"{repository.name}: the older tool has written its index: publish, then run gc again")


async def _check_added(repository: Repository, read: CacheIndex, index: CacheIndex) -> None:
    """Check that what is listed again still exists: another gc may have run while this one was suspended."""
    listed = {segment.manifest for segment in read.segments}
    for segment in index.segments:
        if segment.manifest not in listed and not await has_manifest(repository, segment.manifest):
            raise Error(
                f"{repository.name}: another gc deleted {segment.tag} in the meantime; the index is"
                " unchanged: run gc again"
            )


async def _delete(
    repository: Repository, remover: Remover, prepared: PreparedGc, progress: Progress
) -> Collected:
    """Delete the plan's manifests, except those that readers see by now; what lists others goes first."""
    plan, started, grace = prepared.plan, prepared.state.started, prepared.options.grace
    deleted: list[Digest] = []
    refused: list[tuple[Digest, str]] = []
    waiting: list[tuple[Digest, datetime]] = []
    keeps_listed = False
    former: dict[Digest, datetime] = {}
    candidates: list[tuple[Digest, tuple[str, ...]]] = [
        *((one.digest, one.tags) for one in plan.sweep),
        *((one.manifest, (str(one.segment.tag),)) for one in plan.delete),
    ]
    if candidates:
        union = await read_union(repository, [one.segment for one in plan.delete])
        seen = {union.digest, *(segment.manifest for segment in union.index.segments)}
        candidates = [(manifest, tags) for manifest, tags in candidates if manifest not in seen]
        former = read_former(union.index)
    with progress.stage("deleting", "manifest", len(candidates)) as stage:
        for manifest, tags in candidates:
            try:
                await remover.remove(manifest, tags)
            except ReferencedError as error:
                keeps_listed = True
                since = former.get(manifest)
                if since is not None and started - since <= grace:
                    waiting.append((manifest, min(since, started) + grace))
                else:
                    refused.append((manifest, f"{error}; {_UNKNOWN_INDEX}"))
            except RegistryError as error:
                refused.append((manifest, str(error)))
                if error.is_temporary:
                    break
            else:
                deleted.append(manifest)
                _log.info("manifest deleted", extra={"fields": {"digest": manifest}})
            stage.advance(1)
    return Collected(
        deleted=tuple(deleted), refused=tuple(refused), waiting=tuple(waiting), keeps_listed=keeps_listed
    )


def change_index(
    union: Union, prepared: PreparedGc, written: Sequence[Sequence[Segment]], now: datetime
) -> CacheIndex:
    """Make the index; ``written`` are the segments that were pushed for each of the plan's replacements.

    Marks get the time of the write: earlier readers did not see them. A slow write shortens the grace by its
    duration.
    """
    plan = prepared.plan
    read = {segment.manifest: segment for segment in union.index.segments}
    lifted = {one.manifest for one in plan.lift}
    condemned = {one.manifest for one in plan.condemn} | {
        source.manifest
        for replacement, segments in zip(plan.replacements, written, strict=True)
        if all(read.get(one.manifest, one).condemned is None for one in segments)
        for source in replacement.sources
    }
    # If a tag's manifest could not be read, the watermark stays, and so does all that is newer.
    unlisted = {one.manifest: one.segment.condemned for one in plan.unlist} if union.is_complete else {}
    changed = []
    for manifest, segment in read.items():
        if manifest in unlisted and segment.condemned == unlisted[manifest]:
            continue
        if manifest in lifted:
            changed.append(mark(segment, None))
        elif manifest in condemned and segment.condemned is None:
            changed.append(mark(segment, now))
        else:
            changed.append(segment)
    needed = [one.segment for one in plan.keep]
    needed += [mark(one.segment, None) for one in plan.lift]
    needed += [segment for segments in written for segment in segments]
    watermark = union.index.watermark
    if union.is_complete:
        watermark = max(watermark, prepared.state.started - prepared.options.grace)
    index = replace(union.index, segments=tuple(changed), watermark=watermark)
    # Another gc may have unlisted what this one found to be needed.
    return index.with_segments(segment for segment in needed if segment.manifest not in read)


def mark(segment: Segment, time: datetime | None) -> Segment:
    """Set the mark of a condemned segment; None removes it."""
    descriptor = segment.descriptor
    annotations = dict(descriptor.annotations)
    annotations.pop(media_type.ANNOTATION_CONDEMNED, None)
    if time is not None:
        annotations[media_type.ANNOTATION_CONDEMNED] = format_time(time)
    return Segment.from_descriptor(replace(descriptor, annotations=annotations))

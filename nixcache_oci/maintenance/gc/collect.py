"""Carries out a gc plan, in an order in which a crash at any point loses nothing.

First the replacements are pushed, each segment under its own tag; then one write of the index lists them and
marks what they replace; last, manifests are deleted that an earlier run removed from the index. After a crash
before the write, the cache is as before, with some duplicate segments; after it, the next run continues.
Source: design section 5, promises 3 to 7.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.commit import write_index
from nixcache_oci.cache.listing import Union, read_union
from nixcache_oci.cache.progress import SILENT, Progress
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.repository import Remover, Repository, has_manifest
from nixcache_oci.errors import Error, RegistryError
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan, plan_gc
from nixcache_oci.maintenance.gc.index_change import PreparedGc, change_index
from nixcache_oci.maintenance.gc.repacking import push_replacement
from nixcache_oci.maintenance.gc.state_reader import read_state
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run did.

    Attributes:
        written: segments that were pushed to replace others.
        is_index_confirmed: whether the index was read back as written, or needed no change; if not, another
            writer interfered, nothing was deleted, and the next run continues.
        deleted: manifests of segments and former indexes.
        refused: those that the repository keeps, and why; the next run tries again.
    """

    written: tuple[Segment, ...] = ()
    is_index_confirmed: bool = True
    deleted: tuple[Digest, ...] = ()
    refused: tuple[tuple[Digest, str], ...] = ()


async def prepare_gc(
    repository: Repository,
    remover: Remover,
    options: GcOptions,
    *,
    progress: Progress = SILENT,
    clock: Callable[[], datetime] = now,
) -> PreparedGc:
    """Read everything and decide; nothing is written.

    Args:
        repository: of the cache.
        remover: lists former versions of the index.
        options: how to decide.
        progress: gets progress.
        clock: tells the time.

    Raises:
        Error: something could not be read; see ``read_state``.
    """
    started = clock()
    oldest = started - options.grace
    untagged = [version for version in await remover.untagged() if version.created < oldest]
    state = await read_state(repository, started, untagged, progress)
    # A large cache takes seconds: long enough for connections to be dropped.
    plan = await asyncio.to_thread(plan_gc, state, options, started)
    return PreparedGc(state, options, plan)


async def carry_out_gc(
    repository: Repository,
    remover: Remover,
    prepared: PreparedGc,
    *,
    force: bool = False,
    source: str | None = None,
    progress: Progress = SILENT,
    clock: Callable[[], datetime] = now,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Collected:
    """Carry out the plan.

    Args:
        repository: of the cache, with the right to push.
        remover: deletes manifests.
        prepared: the plan.
        force: whether to ignore the plan's refusals.
        source: URL of the GitHub repository: GHCR links the package to it.
        progress: gets progress.
        clock: tells the time.
        sleep: waits some seconds between tries.

    Raises:
        Error: the plan refuses, or the repository failed; the next run continues.
    """
    plan = prepared.plan
    if plan.refusals and not force:
        raise Error(f"{repository.name}: gc did nothing: {'; '.join(plan.refusals)} (--force)")
    written: list[tuple[Segment, ...]] = []
    with progress.stage("writing what stays", "replacement", len(plan.replacements)) as stage:
        for replacement in plan.replacements:
            pushed = await push_replacement(
                repository,
                replacement,
                clock(),
                max_layers=prepared.options.max_layers,
                max_blob_bytes=prepared.options.max_blob_bytes,
                source=source,
                stage=stage,
            )
            written.append(tuple(pushed))
            stage.advance(1)
    segments = tuple(segment for pushed in written for segment in pushed)

    async def change(union: Union) -> CacheIndex:
        if union.version1 is not None:
            raise Error(
                f"{repository.name}: the older tool has written its index: publish, then run gc again"
            )
        index = change_index(union, prepared, written, clock())
        await _check_added(repository, union.index, index)
        return replace(index, source=index.source or source)

    if plan.changes_index and not await write_index(repository, segments, change, sleep=sleep):
        return Collected(segments, is_index_confirmed=False)
    deleted, refused = await _delete(repository, remover, plan, progress)
    return Collected(segments, deleted=deleted, refused=refused)


async def _check_added(repository: Repository, read: CacheIndex, index: CacheIndex) -> None:
    """Check that what is listed again still exists: another gc may have run while this one was suspended.

    Raises:
        Error: it does not.
    """
    listed = {segment.manifest for segment in read.segments}
    for segment in index.segments:
        if segment.manifest not in listed and not await has_manifest(repository, segment.manifest):
            raise Error(
                f"{repository.name}: another gc deleted {segment.tag} in the meantime; the index is"
                " unchanged: run gc again"
            )


async def _delete(
    repository: Repository, remover: Remover, plan: GcPlan, progress: Progress
) -> tuple[tuple[Digest, ...], tuple[tuple[Digest, str], ...]]:
    """Delete the plan's manifests, except those that readers see by now."""
    deleted: list[Digest] = []
    refused: list[tuple[Digest, str]] = []
    candidates = [*(one.manifest for one in plan.delete), *(former.digest for former in plan.sweep)]
    if candidates:
        union = await read_union(repository, [one.segment for one in plan.delete])
        seen = {union.digest, *(segment.manifest for segment in union.index.segments)}
        candidates = [manifest for manifest in candidates if manifest not in seen]
    with progress.stage("deleting", "manifest", len(candidates)) as stage:
        for manifest in candidates:
            try:
                await remover.remove(manifest)
            except RegistryError as error:
                refused.append((manifest, str(error)))
                if error.is_temporary:
                    break
            else:
                deleted.append(manifest)
                _log.info("manifest deleted", extra={"fields": {"digest": manifest}})
            stage.advance(1)
    return tuple(deleted), tuple(refused)

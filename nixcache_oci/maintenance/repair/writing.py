"""Carries out a repair, in an order in which a crash at any point loses nothing.

First the replacements are pushed, each segment under its own tag; then one write of the index lists them
instead of the broken ones; then the broken segments' manifests are deleted, because their tags would bring
them back. After a crash, something may be listed twice, and the next run continues.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.commit import write_index
from nixcache_oci.cache.listing import Union, read_union
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.timestamp import format_time, now, other_than
from nixcache_oci.cache.writer import (
    SegmentOptions,
    describe_blobs,
    push_empty_config,
    push_typed,
    write_segments,
)
from nixcache_oci.clients.repository import Remover, Repository, has_manifest
from nixcache_oci.errors import Error, FormatError, NotFoundError, ReferencedError, RegistryError
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.maintenance.repair.repair_plan import RepairPlan, Rewrite
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

_PARALLEL_REQUESTS: Final = 16
_LOOKS: Final = 3
_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair wrote."""

    written: tuple[Segment, ...] = ()  # segments that replace others
    deleted: tuple[str, ...] = ()  # tags of segments that are gone
    refused: tuple[tuple[str, str], ...] = ()  # tags that are kept, and why: marked, and so the last choice
    is_index_confirmed: bool = True  # if not, nothing was deleted, and the next run continues


async def carry_out_repair(
    repository: Repository,
    remover: Remover,
    plan: RepairPlan,
    *,
    options: SegmentOptions,
    clock: Callable[[], datetime] = now,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Repaired:
    """Carry out the plan, ignoring its refusal; Error if the repository failed: the next run continues."""
    written: list[Segment] = []
    for rewrite in plan.rewrites:
        written += await _push(repository, rewrite, clock(), options)
    replaced = {rewrite.source.segment.manifest: rewrite.source.segment for rewrite in plan.rewrites}

    refused: dict[Digest, str] = {}

    async def change(union: Union) -> CacheIndex:
        """Make the index; other writers' changes are kept."""
        if union.version1 is not None:
            raise Error(
                f"{repository.name}: the older tool wrote its index: publish, which converts its entries and"
                " leaves out those without bytes; then repair"
            )
        segments: list[Segment] = []
        for segment in union.index.segments:
            if segment.manifest not in replaced:
                segments.append(segment)
            elif segment.manifest in refused:
                segments.append(segment if segment.condemned is not None else mark(segment, clock()))
        index = replace(union.index, segments=tuple(segments)).with_segments(written)
        return replace(index, source=index.source or options.source)

    if plan.rewrites and not await write_index(repository, written, change, clock=clock, sleep=sleep):
        return Repaired(tuple(written), is_index_confirmed=False)
    tags = _Tags(repository, remover, sleep)
    refused = await _delete(repository, remover, replaced.values(), tags)
    for tag in plan.tags:
        await tags.free(tag)

    # A writer that read the index before it was written may have listed the deleted segments again.
    union = await read_union(repository, (*written, *replaced.values()))
    is_confirmed = True
    if refused or any(segment.manifest in replaced for segment in union.index.segments):
        known = (*written, *(segment for segment in replaced.values() if segment.manifest in refused))
        is_confirmed = await write_index(repository, known, change, clock=clock, sleep=sleep) is not None
    return Repaired(
        tuple(written),
        tuple(
            str(segment.tag)
            for manifest, segment in replaced.items()
            if manifest not in refused and str(segment.tag) not in tags.refused
        ),
        (
            *((str(replaced[manifest].tag), reason) for manifest, reason in refused.items()),
            *tags.refused.items(),
        ),
        is_confirmed,
    )


async def _delete(
    repository: Repository, remover: Remover, segments: Iterable[Segment], tags: "_Tags"
) -> dict[Digest, str]:
    """Delete the manifests of replaced segments; returns those that are kept, and why."""
    refused: dict[Digest, str] = {}
    for segment in segments:
        try:
            if await has_manifest(repository, segment.manifest):
                await remover.remove(segment.manifest, [str(segment.tag)])
            else:
                await tags.free(segment.tag)
        except ReferencedError as error:
            # Without its tag nothing brings it back, and the index remembers it for gc.
            if await tags.find(segment.tag):
                refused[segment.manifest] = str(error)
        except RegistryError as error:
            refused[segment.manifest] = str(error)
    return refused


class _Tags:
    """Removes tags whose manifests are lost: gc does not run while there are any.

    Repositories delete a tag only with its manifest, so it first gets another one. ``refused`` are those that
    stay, and why.
    """

    def __init__(
        self, repository: Repository, remover: Remover, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._repository = repository
        self._remover = remover
        self._sleep = sleep
        self.refused: dict[str, str] = {}

    async def free(self, tag: SegmentTag) -> None:
        """Remove a tag that exists without its manifest."""
        try:
            if await self._is_lost(tag) and not await self._replace(tag):
                self.refused[str(tag)] = "the repository keeps the tag: delete it manually"
        except RegistryError as error:
            self.refused[str(tag)] = str(error)

    async def _is_lost(self, tag: SegmentTag) -> bool:
        """Look several times: just after a push, a registry may list a tag before it knows the manifest."""
        for attempt in range(_LOOKS):
            if attempt:
                await self._sleep(_PAUSE_SECONDS)
            if await has_manifest(self._repository, tag.manifest) or not await self.find(tag):
                return False
        return True

    async def find(self, tag: SegmentTag) -> list[str]:
        """List the tag as the repository does, in either case or in both."""
        return [text for text in await self._repository.list_tags() if SegmentTag.parse(text) == tag]

    async def _replace(self, tag: SegmentTag) -> bool:
        annotations = {media_type.ANNOTATION_CREATED: format_time(tag.created)}
        stand_in = Manifest(media_type.SEGMENT, EMPTY_CONFIG, (), annotations).render()
        await push_empty_config(self._repository)
        manifest = Digest.of(stand_in)
        for text in await self.find(tag):
            manifest = Digest.of(await push_typed(self._repository, stand_in, text))
        for attempt in range(_LOOKS):
            if attempt:
                await self._sleep(_PAUSE_SECONDS)
            # GitHub's API may need a moment until it lists what was just pushed.
            await self._remover.remove(manifest, [str(tag)])
            if not await self.find(tag):
                return True
        return False


async def _push(
    repository: Repository, rewrite: Rewrite, created: datetime, options: SegmentOptions
) -> list[Segment]:
    """Push what is left of a segment; no blob is repacked, because their content is not verified here."""
    if rewrite.header is None or not (rewrite.narinfos or rewrite.records):
        return []
    return await write_segments(
        repository,
        replace(rewrite.header, created=other_than(created, rewrite.source.segment.created)),
        order_by_references(rewrite.narinfos),
        await _describe_blobs(repository, rewrite),
        rewrite.records,
        options=options,
    )


async def _describe_blobs(repository: Repository, rewrite: Rewrite) -> dict[Digest, Descriptor]:
    """Describe the blobs from the manifest, or else by asking the repository."""
    layers: dict[Digest, Descriptor] = {}
    try:
        stored = await repository.get_manifest(str(rewrite.source.segment.manifest))
        layers = {layer.digest: layer for layer in Manifest.parse(stored.content).layers}
    except (NotFoundError, FormatError):
        pass  # then only the narinfos describe them
    unknown = (one for one in rewrite.narinfos if NarUrl.parse(one.url).blob not in layers)
    return layers | await describe_blobs(repository, unknown)

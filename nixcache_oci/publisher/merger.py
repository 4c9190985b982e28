"""Merging as one publishes: small segments become one, which names them.

After the publish, whose success does not depend on it. Readers skip what a merged segment took in, and gc
condemns that: nothing is lost if the index that lists the merged segment is overwritten, or if two publishers
merge the same. Source: design section 2, "Segment", and section 4, promise 9.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from nixcache_oci.cache.cache_index import MAX_INDEX_BYTES, CacheIndex
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing, read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.repacking import join_headers, repack
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cache.writer import SegmentOptions, draft_segments, push_segment
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import Error, FormatError, NotFoundError
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.merge_plan import (
    MergePlan,
    Part,
    choose_merged,
    find_small,
    is_due,
    plan_merge,
)
from nixcache_oci.wording import counted

_log = logging.getLogger(__name__)

_PARALLEL_REQUESTS: Final = 16
# A reader who wants one NAR of each waits for all of a pack's bytes, and fetches few large ones at once.
_MAX_PACK_BYTES: Final = 4 * 1024 * 1024
# What a merged segment adds to the index; an index that is nearly full is left to gc, which shortens it.
_SPACE_IN_INDEX: Final = MAX_INDEX_BYTES // 8


@dataclass(frozen=True, slots=True)
class Merger:
    """Merges small segments of a cache; needs a repository with permission to push."""

    repository: Repository
    folder: IndexFolder
    options: SegmentOptions
    progress: Progress
    clock: Callable[[], datetime] = now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def follow(self, published: Published) -> None:
        """Merge after a publish, if there are many and it is its turn; a failure is a warning."""
        if published.listing is None:
            return
        if not is_due(find_small(published.listing.without_taken_in().segments), published.segments):
            return
        try:
            merged = await self.merge(published.listing)
        except (Error, OSError) as error:
            self.progress.warn(
                f"{self.repository.name}: small segments were not merged: {error}; what was published is"
                " complete, and a later publish tries again"
            )
        else:
            if merged is not None:
                taken_in = counted(len(merged.merges), "segment")
                self.progress.note(f"merged {taken_in} into one of {counted(merged.paths, 'path')}")

    async def merge(self, listing: Listing) -> Segment | None:
        """Merge what this lists; None if there is too little, no space in the index, or another merger.

        Raises:
            Error: the repository could not answer, or something in it is damaged; nothing is lost.
        """
        if len(CacheIndex(listing.segments).render()) > MAX_INDEX_BYTES - _SPACE_IN_INDEX:
            return None
        tables = await read_tables(self.repository, self.folder, listing)
        chosen = choose_merged(
            find_small(tables.listing.segments),
            {digest: file.size for digest, file in tables.tables.items()},
        )
        read = await run_all(
            (self._read_part(one, tables.tables[one.table]) for one in chosen), _PARALLEL_REQUESTS
        )
        parts = [part for part in read if part is not None]
        # On a thread, as is all that takes more than a few milliseconds.
        plan = await asyncio.to_thread(plan_merge, parts, self.options)
        if plan is None or await self._is_taken_in(plan, listing):
            return None
        return await self._push(plan)

    async def _is_taken_in(self, plan: MergePlan, listing: Listing) -> bool:
        """Look whether another merger took in some of it since the listing: bytes would move twice."""
        known = {one.manifest for one in listing.segments}
        present = await read_listing(self.repository, listing.segments)
        taken_in = {
            manifest for one in present.segments if one.manifest not in known for manifest in one.merges
        }
        return any(part.segment.manifest in taken_in for part in plan.parts)

    async def _read_part(self, segment: Segment, file: TableFile) -> Part | None:
        """Read what may be merged; None if its manifest is gone, or its table is malformed."""
        try:
            stored = await self.repository.get_manifest(str(segment.manifest))
            layers = Manifest.parse(stored.content).layers[1:]
            part = await asyncio.to_thread(
                lambda: Part(
                    segment,
                    file.header,
                    file.records(),
                    tuple(file.narinfos()),
                    {layer.digest: layer for layer in layers},
                )
            )
            if all(NarUrl.parse(narinfo.url).blob in part.blobs for narinfo in part.narinfos):
                return part
        except (NotFoundError, FormatError) as error:
            _log.info("not merged", extra={"fields": {"tag": segment.tag, "reason": str(error)}})
        return None

    async def _push(self, plan: MergePlan) -> Segment:
        pack_bytes = min(_MAX_PACK_BYTES, self.options.max_blob_bytes or _MAX_PACK_BYTES)
        narinfos, packs = await repack(self.repository, plan.narinfos, plan.moving, pack_bytes)
        header = join_headers((part.header for part in plan.parts), self.clock())
        blobs = plan.blobs | packs
        draft, *others = draft_segments(header, narinfos, blobs, plan.records, self.options)
        if others:
            raise FormatError("merged, they would be more than one segment")
        merged = await push_segment(
            self.repository,
            draft.table,
            draft.layers,
            source=self.options.source,
            merges=[part.segment.manifest for part in plan.parts],
        )
        await list_segments(
            self.repository,
            [merged],
            source=self.options.source,
            tell=self.progress.warn,
            clock=self.clock,
            sleep=self.sleep,
        )
        return merged

"""Mirrors a whole cache to another repository, blob by blob, with unchanged digests.

It copies blobs, then each segment under its own tag, then the index: after a crash the destination is a cache
as before, and the next run sends only what is missing. Unlike a general copier it copies the segments' tags,
by which publishers and gc find what an index has lost.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.commit import list_segments, write_index
from nixcache_oci.cache.former import with_notes_of
from nixcache_oci.cache.listing import Union, read_union, require_cache
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import Progress, Stage
from nixcache_oci.cache.salvage import without_lost
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.table_inflation import read_table
from nixcache_oci.cache.writer import push_tagged, write_segments
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.clients.resume import has_blob, read_blob
from nixcache_oci.errors import DigestError, Error, FormatError, NotFoundError, RegistryError
from nixcache_oci.maintenance.blob_check import stream_blob
from nixcache_oci.maintenance.gc.state_reader import list_segment_tags
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.wording import counted

_MEMORY_BYTES: Final = 16 * 1024 * 1024  # larger blobs go through the disk
_BLOBS_AT_ONCE: Final = 4


@dataclass(slots=True)
class Mirrored:
    """What a run did."""

    segments: int = 0  # number of segments in the source
    sent: int = 0  # number of blobs that were sent
    sent_bytes: int = 0  # their total size
    present: int = 0  # number of blobs that were there already
    failed: int = 0  # number of paths that failed
    reasons: dict[str, str] = field(default_factory=dict)  # by store path, or by segment; each was reported


class Mirror:
    """Copies from one repository to another, which needs the right to push; tells the progress what fails."""

    def __init__(self, source: Repository, destination: Repository, progress: Progress) -> None:
        self._source = source
        self._destination = destination
        self._progress = progress
        self._done = Mirrored()
        self._known: set[Digest] = set()
        self._tagged: set[SegmentTag] = set()

    async def run(self) -> Mirrored:
        """Copy and list everything; Error if the source is empty, or a repository failed: run it again."""
        union = await read_union(self._source)
        require_cache(self._source, union.listing(), "check the name; nothing was copied")
        if union.version1 is not None:
            raise Error(
                f"{self._source.name}: a version 1 cache, whose NARs no manifest names; publish to it once, "
                "which converts it, then mirror it"
            )
        copied: list[Segment] = []
        self._tagged = await list_segment_tags(self._destination)
        for number, segment in enumerate(union.index.segments, 1):
            copied += await self._copy_segment(
                segment, f"segment {number:,} of {len(union.index.segments):,}"
            )
        await self._list(union, copied)
        return self._done

    async def _copy_segment(self, segment: Segment, doing: str) -> Sequence[Segment]:
        """Copy a segment; returns what the destination has of it, nothing if it has left the source."""
        try:
            stored = await self._source.get_manifest(str(segment.manifest))
        except NotFoundError as error:
            if segment.condemned is None:
                self._leave_out(segment, error)
            return []
        manifest = Manifest.parse(stored.content)
        lost = await self._copy_blobs(manifest, doing)
        if lost and (segment.condemned is not None or not await has_manifest(self._source, segment.manifest)):
            return []  # it is condemned, or was just deleted
        self._done.segments += 1
        if lost:
            return await self._copy_rest(segment, manifest, lost)
        if segment.tag not in self._tagged or not await has_manifest(self._destination, segment.manifest):
            return [await push_tagged(self._destination, stored.content)]
        return [segment]

    async def _copy_rest(
        self, segment: Segment, manifest: Manifest, lost: Mapping[Digest, str]
    ) -> Sequence[Segment]:
        """Copy what is left of a segment that has lost blobs; the result is the same in every run."""
        if segment.table in lost:
            self._leave_out(segment, lost[segment.table])
            return []
        table = await read_table(self._source, segment.table)
        blobs = {layer.digest: layer for layer in manifest.layers[1:] if layer.digest not in lost}
        rest = without_lost(table, blobs)
        reasons = {one.store_path: lost.get(NarUrl.parse(one.url).blob) for one in table.narinfos}
        for path, why in rest.lost.items():
            reason = self._done.reasons[str(path)] = reasons[path] or why
            self._progress.warn(f"{path}: left out: {reason}")
        self._done.failed += len(rest.lost)
        if rest.table is None:
            return []
        return await write_segments(
            self._destination,
            rest.table.header,
            order_by_references(rest.table.narinfos),
            blobs,
            rest.table.records,
        )

    def _leave_out(self, segment: Segment, reason: object) -> None:
        self._done.reasons[str(segment.tag)] = str(reason)
        paths = counted(segment.paths, "unknown path")
        self._progress.warn(f"{segment.tag}: left out, with {paths}: {reason}")
        self._done.failed += segment.paths

    async def _copy_blobs(self, manifest: Manifest, doing: str) -> dict[Digest, str]:
        """Copy the blobs of a manifest; returns those that the source has lost, and why."""
        blobs = {one.digest: one for one in (manifest.config, *manifest.layers)}
        missing = [one for digest, one in blobs.items() if digest not in self._known]
        size = sum(one.size for one in missing)
        with self._progress.stage(f"mirroring {doing}", "blob", len(missing), size) as stage:
            found = await run_all((self._find_damage(one, stage) for one in missing), _BLOBS_AT_ONCE)
        lost = {one.digest: why for one, why in zip(missing, found, strict=True) if why}
        self._known |= blobs.keys() - lost.keys()
        return lost

    async def _find_damage(self, blob: Descriptor, stage: Stage) -> str:
        """Copy a blob; returns an empty string, or what is wrong with it."""
        if await has_blob(self._destination, blob):
            self._done.present += 1
            stage.advance(1, blob.size)
            return ""
        with tempfile.TemporaryDirectory(prefix="nixcache-oci-") as folder:
            try:
                content = await self._fetch(blob, Path(folder) / "blob", stage)
            except (DigestError, FormatError, RegistryError) as error:
                await raise_unless_damage(self._source, error)
                return str(error)
            await self._destination.push_blob(blob.digest, content)
        stage.advance(1)
        stage.sent(blob.size)
        self._done.sent += 1
        self._done.sent_bytes += blob.size
        return ""

    async def _fetch(self, blob: Descriptor, path: Path, stage: Stage) -> bytes | Path:
        """Fetch and check a blob, a large one into this file; DigestError if it does not match."""
        if blob.size <= _MEMORY_BYTES:
            content = bytes(await read_blob(self._source, blob.digest, _MEMORY_BYTES))
            stage.advance(size=len(content))
            return content
        try:
            with path.open("wb") as file:
                await stream_blob(self._source, blob.digest, file.write, stage)
        except DigestError as error:
            raise DigestError(f"{self._source.name}: {error}; verify says more") from None
        return path

    async def _list(self, union: Union, copied: Sequence[Segment]) -> None:
        """Copy the source's index, with marks and watermark, unless the destination has more or less.

        It is verbatim where the destination has none, or lists by itself what has no tag; else it keeps in
        it what it remembers.
        """
        there = await read_union(self._destination)
        listed = _manifests(union.index.segments)
        is_whole = union.is_complete and listed == _manifests(copied)
        if is_whole and there.version1 is None and _manifests(there.index.segments) <= listed:
            stored = await self._source.get_manifest(INDEX_TAG)
            if stored.digest == union.digest:
                index = CacheIndex.parse(stored.content)

                async def change(found: Union) -> CacheIndex:
                    is_verbatim = self._destination.can_list_untagged or found.digest is None
                    noted = index if is_verbatim else with_notes_of(index, found.index)
                    return noted.with_segments(found.index.segments)

                await write_index(self._destination, copied, change, tell=self._progress.warn)
                return
        await list_segments(self._destination, copied, tell=self._progress.warn)


def _manifests(segments: Iterable[Segment]) -> set[Digest]:
    return {segment.manifest for segment in segments}

"""The mirror: a whole cache in another repository, blob by blob, every digest unchanged.

Blobs, then each segment under its own tag, then the index: killed anywhere, the destination is a cache as it
was, and the next run sends only what is not there yet. Unlike a general copier it brings the segments' tags,
by which publishers and gc find what an index lost.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import Union, read_union, require_cache
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all, run_in_thread
from nixcache_oci.cache.progress import Progress, Stage
from nixcache_oci.cache.salvage import without_lost
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_inflation import read_table
from nixcache_oci.cache.writer import write_segments
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.clients.resume import has_blob, open_resuming, read_blob
from nixcache_oci.errors import DigestError, Error, FormatError, NotFoundError, RegistryError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.wording import counted

_MEMORY_BYTES: Final = 16 * 1024 * 1024  # what is no larger does not go through the disk
_BLOBS_AT_ONCE: Final = 4


@dataclass(slots=True)
class Mirrored:
    """What a run did.

    Attributes:
        segments: how many the source has.
        sent: how many blobs were sent.
        sent_bytes: how many bytes they have.
        present: how many blobs were there already.
        failed: how many paths could not be had.
        reasons: why, by store path, or by the segment of those that are not known; each was named.
    """

    segments: int = 0
    sent: int = 0
    sent_bytes: int = 0
    present: int = 0
    failed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


class Mirror:
    """Copies from one repository to another.

    Args:
        source: is read.
        destination: with leave to push.
        progress: is told how far it is, and what cannot be had.
    """

    def __init__(self, source: Repository, destination: Repository, progress: Progress) -> None:
        self._source = source
        self._destination = destination
        self._progress = progress
        self._done = Mirrored()
        self._known: set[Digest] = set()

    async def run(self) -> Mirrored:
        """Copy all of it, and list it beside what the destination has.

        Raises:
            Error: the source is empty, or one of the two could not do it; the next run goes on.
        """
        union = await read_union(self._source)
        require_cache(self._source, union.listing(), "check the name; nothing was copied")
        if union.version1 is not None:
            raise Error(
                f"{self._source.name}: a version 1 cache, whose NARs no manifest names; publish to it once, "
                "which converts it, then mirror it"
            )
        copied: list[Segment] = []
        for number, segment in enumerate(union.index.segments, 1):
            copied += await self._copy_segment(
                segment, f"segment {number:,} of {len(union.index.segments):,}"
            )
        await self._list(union, copied)
        return self._done

    async def _copy_segment(self, segment: Segment, doing: str) -> Sequence[Segment]:
        """Copy a segment; gives what the destination has of it, nothing where it left the source."""
        try:
            stored = await self._source.get_manifest(str(segment.manifest))
        except NotFoundError as error:
            if segment.condemned is None:
                self._leave_out(segment, error)
            return []
        manifest = Manifest.parse(stored.content)
        lost = await self._copy_blobs(manifest, doing)
        if lost and (segment.condemned is not None or not await has_manifest(self._source, segment.manifest)):
            return []  # it is dead, or has just been deleted
        self._done.segments += 1
        if lost:
            return await self._copy_rest(segment, manifest, lost)
        if not await has_manifest(self._destination, str(segment.tag)):
            await self._destination.push_manifest(str(segment.tag), stored.content, stored.media_type)
        return [segment]

    async def _copy_rest(
        self, segment: Segment, manifest: Manifest, lost: Mapping[Digest, str]
    ) -> Sequence[Segment]:
        """Copy what is left of a segment whose blobs are not all there; every run gives the same."""
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
        """Copy the blobs of a manifest; gives those that the source has lost, and how it tells."""
        blobs = {one.digest: one for one in (manifest.config, *manifest.layers)}
        missing = [one for digest, one in blobs.items() if digest not in self._known]
        size = sum(one.size for one in missing)
        with self._progress.stage(f"mirroring {doing}", "blob", len(missing), size) as stage:
            found = await run_all((self._find_damage(one, stage) for one in missing), _BLOBS_AT_ONCE)
        lost = {one.digest: why for one, why in zip(missing, found, strict=True) if why}
        self._known |= blobs.keys() - lost.keys()
        return lost

    async def _find_damage(self, blob: Descriptor, stage: Stage) -> str:
        """Copy a blob; gives an empty string, or what is wrong with it."""
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
        """Fetch and check a blob, a large one into this file."""
        if blob.size <= _MEMORY_BYTES:
            content = bytes(await read_blob(self._source, blob.digest, _MEMORY_BYTES))
            stage.advance(size=len(content))
            return content
        hasher = hashlib.sha256()
        with path.open("wb") as file:

            def write(chunk: bytes) -> None:
                hasher.update(chunk)
                file.write(chunk)

            async with open_resuming(self._source, blob.digest) as stream:
                async for chunk in stream.chunks:
                    await run_in_thread(write, chunk)
                    stage.advance(size=len(chunk))
        if hasher.hexdigest() != blob.digest.hex:
            raise DigestError(
                f"{self._source.name}: blob {blob.digest} does not match its digest; verify says more"
            )
        return path

    async def _list(self, union: Union, copied: Sequence[Segment]) -> None:
        """Write the source's own index, marks and watermark too, unless the destination has more, or less."""
        there = await read_union(self._destination)
        listed = _manifests(union.index.segments)
        is_whole = union.is_complete and listed == _manifests(copied)
        if is_whole and there.version1 is None and _manifests(there.index.segments) <= listed:
            stored = await self._source.get_manifest(INDEX_TAG)
            if stored.digest == union.digest:
                if there.digest != stored.digest:
                    await self._destination.push_manifest(INDEX_TAG, stored.content, stored.media_type)
                return
        await list_segments(self._destination, copied, tell=self._progress.warn)


def _manifests(segments: Iterable[Segment]) -> set[Digest]:
    return {segment.manifest for segment in segments}

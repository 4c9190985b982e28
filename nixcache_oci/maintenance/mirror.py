"""The mirror: a whole cache in another repository, blob by blob, every digest unchanged.

Blobs, then each segment under its own tag, then the index: killed anywhere, the destination is a cache as it
was, and the next run sends only what is not there yet. Unlike a general copier it brings the segments' tags,
by which publishers and gc find what an index lost.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import Union, read_union
from nixcache_oci.cache.parallel import run_all, run_in_thread
from nixcache_oci.cache.segment import Segment
from nixcache_oci.clients.repository import Repository, StoredManifest, has_manifest
from nixcache_oci.clients.resume import open_resuming, read_blob
from nixcache_oci.errors import DigestError, Error, NotFoundError
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

_MEMORY_BYTES: Final = 16 * 1024 * 1024  # what is no larger does not go through the disk
_BLOBS_AT_ONCE: Final = 4

Tell = Callable[[str], None]
"""Is given one line for people."""


@dataclass(slots=True)
class Mirrored:
    """What a run did.

    Attributes:
        segments: how many the source has.
        sent: how many blobs were sent.
        sent_bytes: how many bytes they have.
        present: how many blobs were there already.
    """

    segments: int = 0
    sent: int = 0
    sent_bytes: int = 0
    present: int = 0


class Mirror:
    """Copies from one repository to another.

    Args:
        source: is read.
        destination: with leave to push.
        tell: gets one line for each segment.
    """

    def __init__(self, source: Repository, destination: Repository, tell: Tell) -> None:
        self._source = source
        self._destination = destination
        self._tell = tell
        self._done = Mirrored()
        self._known: set[Digest] = set()

    async def run(self) -> Mirrored:
        """Copy all of it, and list it beside what the destination has.

        Raises:
            Error: the source is empty, or one of the two could not do it; the next run goes on.
        """
        union = await read_union(self._source)
        if union.digest is None and not union.index.segments:
            raise Error(f"{self._source.name}: there is no cache; nothing was copied")
        if union.version1 is not None:
            raise Error(
                f"{self._source.name}: a version 1 cache, whose NARs no manifest names; publish to it once, "
                "which converts it, then mirror it"
            )
        for number, segment in enumerate(union.index.segments, 1):
            if await self._copy_segment(segment):
                self._tell(f"{number} of {len(union.index.segments)}: {segment.tag}")
        await self._list(union)
        return self._done

    async def _copy_segment(self, segment: Segment) -> bool:
        """Copy a segment; False where it left the source meanwhile."""
        try:
            stored = await self._source.get_manifest(str(segment.manifest))
            await self._copy_blobs(stored)
        except NotFoundError:
            if await has_manifest(self._source, segment.manifest):
                raise
            return False
        self._done.segments += 1
        if not await has_manifest(self._destination, str(segment.tag)):
            await self._destination.push_manifest(str(segment.tag), stored.content, stored.media_type)
        return True

    async def _copy_blobs(self, stored: StoredManifest) -> None:
        manifest = Manifest.parse(stored.content)
        blobs = {one.digest: one for one in (manifest.config, *manifest.layers)}
        missing = [one for digest, one in blobs.items() if digest not in self._known]
        await run_all((self._copy_blob(one) for one in missing), _BLOBS_AT_ONCE)
        self._known |= blobs.keys()

    async def _copy_blob(self, blob: Descriptor) -> None:
        try:
            await self._destination.stat_blob(blob.digest)
        except NotFoundError:
            pass
        else:
            self._done.present += 1
            return
        if blob.size <= _MEMORY_BYTES:
            content = await read_blob(self._source, blob.digest, _MEMORY_BYTES)
            await self._destination.push_blob(blob.digest, bytes(content))
        else:
            with tempfile.TemporaryDirectory(prefix="nixcache-oci-") as folder:
                await self._copy_large(blob, Path(folder) / "blob")
        self._done.sent += 1
        self._done.sent_bytes += blob.size

    async def _copy_large(self, blob: Descriptor, path: Path) -> None:
        hasher = hashlib.sha256()
        with path.open("wb") as file:

            def write(chunk: bytes) -> None:
                hasher.update(chunk)
                file.write(chunk)

            async with open_resuming(self._source, blob.digest) as stream:
                async for chunk in stream.chunks:
                    await run_in_thread(write, chunk)
        if hasher.hexdigest() != blob.digest.hex:
            raise DigestError(f"{self._source.name}: blob {blob.digest} has other bytes; verify tells more")
        await self._destination.push_blob(blob.digest, path)

    async def _list(self, union: Union) -> None:
        """Write the source's own index, marks and watermark too, unless the destination has more."""
        there = await read_union(self._destination)
        listed = {segment.manifest for segment in union.index.segments}
        if there.version1 is None and _manifests(there.index.segments) <= listed and union.is_complete:
            stored = await self._source.get_manifest(INDEX_TAG)
            if stored.digest == union.digest:
                if there.digest != stored.digest:
                    await self._destination.push_manifest(INDEX_TAG, stored.content, stored.media_type)
                return
        await list_segments(self._destination, union.index.segments)


def _manifests(segments: Iterable[Segment]) -> set[Digest]:
    return {segment.manifest for segment in segments}

"""Removes files from an OCI image layout: a manifest, and every blob that no manifest names any more.

``index.json`` is written before files are removed: a crash leaves at most files that nothing names, and the
next removal takes them. A publisher may be about to name such a file, so young files stay, and so does what
a young manifest names that ``index.json`` does not list yet.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from threading import Event
from typing import Final

from nixcache_oci.clients.layout import stopping
from nixcache_oci.clients.layout_folder import LOCK_SECONDS, LayoutFolder, References, find_references
from nixcache_oci.clients.repository import UntaggedVersion
from nixcache_oci.errors import FormatError, NotFoundError, RegistryError
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import MAX_MANIFEST_BYTES, parse_media_type
from nixcache_oci.oci.media_type import ANNOTATION_REF_NAME, IMAGE_INDEXES, MANIFESTS

_MIN_AGE_SECONDS: Final = 24 * 3600.0  # longer than a publish takes from pushing a blob to its manifest


class LayoutRemover:
    """Implements ``Remover`` over an OCI image layout, in threads; disk space is free at once.

    Blobs that were written or pushed again within ``min_age_seconds`` stay.
    """

    def __init__(
        self, root: Path, *, min_age_seconds: float = _MIN_AGE_SECONDS, lock_seconds: float = LOCK_SECONDS
    ) -> None:
        self._sweep = _LayoutSweep(LayoutFolder(root, lock_seconds), min_age_seconds)
        self._turn = asyncio.Lock()  # so that only one thread waits for the lock between programs

    async def remove(self, manifest: Digest, tags: Iterable[str] = ()) -> None:
        """Remove a manifest with its tags; refused while an image index with a tag lists it."""
        del tags  # they go with it
        async with self._turn:
            with suppress(NotFoundError), stopping() as stop:
                await asyncio.to_thread(self._sweep.remove, manifest, stop)

    async def untagged(self) -> list[UntaggedVersion]:
        """List what ``index.json`` names without a tag, as other programs write it."""
        async with self._turn:
            try:
                return await asyncio.to_thread(self._sweep.untagged)
            except NotFoundError:
                return []

    async def close(self) -> None:
        """Do nothing: nothing is held open between calls."""


class _LayoutSweep:
    """Removes from one layout; every call blocks.

    Every method raises RegistryError, and NotFoundError where there is no layout. Damage is an error too:
    what cannot be read may name anything, so nothing is removed then.
    """

    def __init__(self, folder: LayoutFolder, min_age_seconds: float) -> None:
        self._folder = folder
        self._min_age_seconds = min_age_seconds
        # Files never change, so each is parsed once.
        self._known: dict[Digest, References] = {}
        self._young: dict[Digest, frozenset[Digest]] = {}

    def remove(self, manifest: Digest, stop: Event) -> None:
        """Remove a manifest with its tags, and old blobs that no other manifest names."""
        with self._folder.translated(f"remove manifest {manifest}"):
            self._folder.read_index()  # without a layout, there is nothing to lock
            with self._folder.lock(stop):
                index = self._folder.read_index()
                kept = tuple(each for each in index.manifests if each.digest != manifest)
                reached = self._reach(kept)
                if manifest in reached:
                    raise RegistryError(
                        f"{self._folder.name}: cannot remove manifest {manifest}: an image index that"
                        " index.json names lists it; unlist it first"
                    )
                unnamed = self._find_unnamed(reached | {manifest})
                if kept != index.manifests:
                    self._folder.write_index(replace(index, manifests=kept))
                for digest in (manifest, *unnamed):
                    self._folder.path_of(digest).unlink(missing_ok=True)

    def untagged(self) -> list[UntaggedVersion]:
        """List what ``index.json`` names without a tag, with the time when its file was written."""
        with self._folder.translated("list manifests"):
            named = self._folder.read_index().manifests
            tagged = {each.digest for each in named if ANNOTATION_REF_NAME in each.annotations}
            # Without duplicates: a manifest may be listed twice.
            untagged = dict.fromkeys(each.digest for each in named if each.digest not in tagged)
            return [UntaggedVersion(digest, self._written(digest)) for digest in untagged]

    def _written(self, digest: Digest) -> datetime:
        status = self._folder.path_of(digest).stat()
        if status is None:
            raise self._missing(digest)
        return datetime.fromtimestamp(status.st_mtime, UTC)

    def _missing(self, digest: Digest) -> RegistryError:
        return RegistryError(f"{self._folder.name} is damaged: index.json names {digest}, which is missing")

    def _reach(self, named: Iterable[Descriptor]) -> set[Digest]:
        """Follow what ``index.json`` names, down to the blobs."""
        reached: set[Digest] = set()
        waiting: list[Digest] = []
        for each in named:
            if each.media_type not in (*MANIFESTS, *IMAGE_INDEXES):
                reached.add(each.digest)
            elif self._folder.path_of(each.digest).stat() is not None:
                waiting.append(each.digest)
            else:
                raise self._missing(each.digest)
        while waiting:
            digest = waiting.pop()
            if digest in reached:
                continue
            reached.add(digest)
            references = self._references_of(digest)
            reached |= references.blobs
            waiting += references.manifests
        return reached

    def _references_of(self, digest: Digest) -> References:
        if digest not in self._known:
            try:
                stored = self._folder.read_manifest(str(digest))
            except NotFoundError:  # removed, but an image index still lists it, which readers tolerate
                return References(frozenset(), frozenset())
            self._known[digest] = find_references(stored.content, stored.media_type)
        return self._known[digest]

    def _find_unnamed(self, named: set[Digest]) -> list[Digest]:
        """Find old files that are not among these, and that no young manifest names."""
        oldest = time.time() - self._min_age_seconds
        old: list[Digest] = []
        named = named | {EMPTY_CONFIG.digest}
        for digest, status in self._list_files():
            if digest in named:
                continue
            if status.st_mtime < oldest:
                old.append(digest)
            elif status.st_size <= MAX_MANIFEST_BYTES:
                named |= self._read_young(digest)
        return [digest for digest in old if digest not in named]

    def _list_files(self) -> Iterable[tuple[Digest, os.stat_result]]:
        """List the files that are named like blobs; others are not ours."""
        for path, status in self._folder.blobs.entries():
            try:
                digest = Digest(path.name)
            except FormatError:
                continue
            if S_ISREG(status.st_mode):
                yield digest, status

    def _read_young(self, digest: Digest) -> frozenset[Digest]:
        """Return the blobs that a young file names, none if it is no manifest; each file is read once."""
        if digest not in self._young:
            content = self._folder.path_of(digest).read_bytes(MAX_MANIFEST_BYTES)
            try:
                self._young[digest] = find_references(content, parse_media_type(content)).blobs
            except FormatError:
                self._young[digest] = frozenset()
        return self._young[digest]

"""Implements ``Remover`` over an OCI image layout, in threads."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.clients.layout import stopping
from nixcache_oci.clients.layout_folder import LOCK_SECONDS, LayoutFolder
from nixcache_oci.clients.layout_sweep import LayoutSweep
from nixcache_oci.clients.removal import UntaggedVersion
from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci.digest import Digest

_MIN_AGE_SECONDS: Final = 24 * 3600.0  # more than what a publish takes from a blob to its manifest


class LayoutRemover:
    """Removes manifests, and the blobs that nothing names any more; bytes are free at once.

    Args:
        root: the layout's folder.
        min_age_seconds: blobs that were written or pushed again since then stay.
        lock_seconds: how long to wait for other programs that write.
    """

    def __init__(
        self, root: Path, *, min_age_seconds: float = _MIN_AGE_SECONDS, lock_seconds: float = LOCK_SECONDS
    ) -> None:
        self._sweep = LayoutSweep(LayoutFolder(root, lock_seconds), min_age_seconds)
        self._turn = asyncio.Lock()  # one thread waits for the lock between programs, and not one for each

    async def remove(self, manifest: Digest) -> None:
        """Remove a manifest with its tags; refused while an image index with a tag lists it."""
        async with self._turn:
            with suppress(NotFoundError), stopping() as stop:
                await asyncio.to_thread(self._sweep.remove, manifest, stop)

    async def untagged(self) -> list[UntaggedVersion]:
        """List what ``index.json`` names without a tag, such as other programs write."""
        async with self._turn:
            try:
                return await asyncio.to_thread(self._sweep.untagged)
            except NotFoundError:
                return []

    async def close(self) -> None:
        """Nothing is held open between calls."""

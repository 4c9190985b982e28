"""The indexes of caches opened on demand, on disk: few, small in total, and the oldest go first."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from pathlib import Path

from nixcache_oci.cache.index_folder import IndexFolder

_log = logging.getLogger(__name__)


class OnDemandDisk:
    """The folder that has one for each of them; every method blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, name: str) -> IndexFolder:
        """Open the folder of a cache."""
        return IndexFolder(self._root, name)

    def shrink(self, kept: Collection[str], most_bytes: int, most_folders: int) -> dict[str, int]:
        """Delete the oldest folders, but none of ``kept``, and return the sizes of those that are left."""
        sizes = {}
        ages = {}
        try:
            with os.scandir(self._root) as folders:
                for folder in folders:
                    if folder.is_dir(follow_symlinks=False):
                        sizes[folder.name], ages[folder.name] = _measure(Path(folder.path))
        except OSError:  # nothing is kept there, or it cannot be read: then nothing is written there either
            return sizes
        for name in sorted(sizes.keys() - set(kept), key=lambda name: ages[name]):
            if sum(sizes.values()) <= most_bytes and len(sizes) <= most_folders:
                break
            self.remove(name)
            del sizes[name]
        return sizes

    def remove(self, name: str) -> None:
        """Delete a folder, if it is there."""
        try:
            shutil.rmtree(self._root / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            fields = {"path": str(self._root / name), "error": error.strerror}
            _log.warning("an index is not removed", extra={"fields": fields})


class Turns:
    """Lets few caches read tables at a time, and makes space for each first."""

    def __init__(self, most: int, make_space: Callable[[], Coroutine[object, object, None]]) -> None:
        self._make_space = make_space
        self._turns = asyncio.Semaphore(most)

    async def __aenter__(self) -> None:
        await self._turns.acquire()
        try:
            # In a task of its own: it may close the very cache that waits for it.
            await asyncio.shield(asyncio.create_task(self._make_space()))
        except BaseException:
            self._turns.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()


def _measure(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files below a folder, and when one was last written."""
    size, newest = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            status = path.lstat()
            size += status.st_size
            newest = max(newest, status.st_mtime)
    return size, newest

"""The indexes of caches opened on demand, on disk: few, small in total, and the oldest go first."""

import asyncio
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.cache.index_folder import IndexFolder

_log = logging.getLogger(__name__)

# A file system's clock may stand still for some milliseconds.
_TICK_NANOSECONDS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a folder takes.

    Attributes:
        size: bytes of all that is in it.
        newest: when anything in it was last written.
        begun: when measuring began, in nanoseconds.
        changed: when files were last added to, or taken from, it and each folder in it, in nanoseconds.
    """

    size: int
    newest: float
    begun: int
    changed: dict[str, int]

    @classmethod
    def of(cls, top: str) -> Self:
        begun = time.time_ns()
        size, newest, changed = 0, 0.0, {}
        for path in (top, *map(str, Path(top).rglob("*"))):
            with suppress(OSError):  # removed meanwhile
                status = os.lstat(path)
                size += status.st_size
                newest = max(newest, status.st_mtime)
                if stat.S_ISDIR(status.st_mode):
                    changed[path] = status.st_mtime_ns
        return cls(size, newest, begun, changed)

    @property
    def holds(self) -> bool:
        """Whether it is still so: files of an index are replaced, and never written to again.

        What changed just before may have changed again within the same tick.
        """
        settled = self.begun - _TICK_NANOSECONDS
        try:
            return all(os.lstat(path).st_mtime_ns == when < settled for path, when in self.changed.items())
        except OSError:
            return False


class OnDemandDisk:
    """The folder that has one for each of them; every method blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Walking through all of a thousand folders takes a fifth of a second.
        self._measured: dict[str, _Measured] = {}

    def open(self, name: str) -> IndexFolder:
        """Open the folder of a cache."""
        return IndexFolder(self._root, name)

    def shrink(self, kept: Collection[str], most_bytes: int, most_folders: int) -> dict[str, int]:
        """Delete the oldest folders, but none of ``kept``, and return the sizes of those that are left."""
        measured: dict[str, _Measured] = {}
        try:
            with os.scandir(self._root) as folders:
                for folder in folders:
                    if folder.is_dir(follow_symlinks=False):
                        known = self._measured.get(folder.name)
                        if known is None or not known.holds:
                            known = _Measured.of(folder.path)
                        measured[folder.name] = known
        except OSError:  # nothing is kept there, or it cannot be read: then nothing is written there either
            return {}
        total = sum(each.size for each in measured.values())
        for name in sorted(measured.keys() - set(kept), key=lambda name: measured[name].newest):
            if total <= most_bytes and len(measured) <= most_folders:
                break
            self.remove(name)
            total -= measured.pop(name).size
        self._measured = measured
        return {name: each.size for name, each in measured.items()}

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

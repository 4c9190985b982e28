"""Files for tables: in the index folder, or where that fails, in a temporary file, or in bounded memory.

No full disk stops a reader of a cache. What was written so far is copied along, so nothing is fetched twice.
"""

import errno
import os
import tempfile
from collections.abc import Callable
from functools import partial
from io import FileIO
from threading import Lock
from typing import TYPE_CHECKING, Final

from nixcache_oci.cache.mapped_file import map_file
from nixcache_oci.clients.rooted_path import RootedPath

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST_MEMORY_BYTES: Final = 256 * 1024 * 1024
"""Tables in memory, per index folder: those of a cache of a quarter of a million paths."""

_PIECE_BYTES: Final = 1024 * 1024
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_shortage(error: OSError) -> bool:
    """Whether this process or machine is short of files or memory: no other place helps, but time may."""
    return error.errno in _SHORTAGES


class Fallback:
    """Memory for tables that an index folder cannot take.

    Args:
        tell: receives the reason why the folder cannot take more.
        most_bytes: limit of memory.
    """

    def __init__(self, tell: Callable[[OSError], None], most_bytes: int = MOST_MEMORY_BYTES) -> None:
        self.tell = tell
        self._left = most_bytes
        self._lock = Lock()

    def take(self, size: int) -> None:
        """Reserve bytes of memory.

        Raises:
            OSError: over the limit.
        """
        with self._lock:
            if size > self._left:
                raise OSError(errno.ENOMEM, "no memory left for tables that no disk can hold")
            self._left -= size

    def give_back(self, size: int) -> None:
        """Release bytes of memory."""
        with self._lock:
            self._left += size


class SpillingFile:
    """A new file that moves to a fallback when it cannot grow.

    Args:
        path: in the index folder.
        fallback: None to fail instead.

    Attributes:
        is_kept: whether it is at its path.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, path: RootedPath, fallback: Fallback | None) -> None:
        self.is_kept = True
        self._size = 0
        self._fallback = fallback
        self._others = [_open_temporary, _InMemory] if fallback is not None else []
        self._file: FileIO | None = None
        try:
            self._file = _open_new(path)
        except OSError as error:
            self._move(error)

    def write(self, piece: bytes) -> int:
        """Append bytes.

        Raises:
            OSError: no space anywhere.
        """
        view = memoryview(piece)
        while view:
            try:
                written = self._open_file().write(view)
            except OSError as error:
                self._move(error)
            else:
                self._size += written
                view = view[written:]
        return len(piece)

    def map(self) -> memoryview:
        """Sync it to disk, and map it.

        Raises:
            OSError: no space anywhere.
            FormatError: it is empty.
        """
        if self.is_kept:
            try:
                os.fsync(self._open_file().fileno())
            except OSError as error:
                self._move(error)
        file = self._open_file()
        if isinstance(file, _InMemory):
            return file.map()
        return map_file(file.fileno())

    def close(self) -> None:
        """Close it; a map of it remains valid."""
        if self._file is not None:
            self._file.close()

    def _open_file(self) -> FileIO:
        if self._file is None:
            raise AssertionError("it was opened, or an error was raised")
        return self._file

    def _move(self, error: OSError) -> None:
        """Continue in the next place that can take all that was written so far."""
        if is_shortage(error):
            raise error
        if self.is_kept and self._fallback is not None:
            self._fallback.tell(error)
            self.is_kept = False
        while self._others and self._fallback is not None:
            try:
                file = self._others.pop(0)(self._fallback)
            except OSError as further:
                error = further
                continue
            try:
                _copy(self._file, file, self._size)
            except OSError as further:
                error = further
                file.close()
                continue
            self.close()
            self._file = file
            return
        raise error


class _InMemory(FileIO):
    """A file in memory."""

    def __init__(self, fallback: Fallback) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError(errno.ENOSYS, "this system has no files in memory")
        super().__init__(os.memfd_create("nixcache-oci table"), "w+b")
        self._fallback = fallback
        self._taken = 0

    def write(self, data: "ReadableBuffer", /) -> int:
        size = memoryview(data).nbytes
        self._fallback.take(size)
        self._taken += size
        return super().write(data)

    def close(self) -> None:
        taken, self._taken = self._taken, 0
        self._fallback.give_back(taken)
        super().close()

    def map(self) -> memoryview:
        """Map it: the memory is the map's then."""
        mapped = map_file(self.fileno(), partial(self._fallback.give_back, self._taken))
        self._taken = 0
        return mapped


def _open_new(path: RootedPath) -> FileIO:
    return FileIO(path.open_new(), "r+b")


def _open_temporary(_fallback: Fallback) -> FileIO:
    return tempfile.TemporaryFile(buffering=0, prefix="nixcache-oci-")


def _copy(source: FileIO | None, target: FileIO, size: int) -> None:
    position = 0
    while source is not None and position < size:
        piece = os.pread(source.fileno(), min(_PIECE_BYTES, size - position), position)
        view = memoryview(piece)
        while view:
            view = view[target.write(view) :]
        position += len(piece)
        if not piece:
            raise OSError(errno.EIO, "what was written is gone")

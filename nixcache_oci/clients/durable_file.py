"""Files that are whole or not there, also after a crash or a power cut, and a lock between programs."""

import fcntl
import os
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from stat import S_ISREG
from threading import Event

from nixcache_oci.clients.rooted_path import FOR_ALL, RootedPath
from nixcache_oci.errors import RegistryError

_UNFINISHED = ".nixcache-unfinished-"
_UNFINISHED_MAX_AGE = 24 * 3600  # seconds since the last write to it; then its writer is dead
_POLL_SECONDS = (0.005, 0.05)


def write_file(
    path: RootedPath, pieces: Iterable[bytes], workshop: RootedPath, *, mode: int = FOR_ALL
) -> None:
    """Replace a file at once: it is as it was, or whole and with its bytes on the disk.

    A link, pipe or whatever else is there is replaced as well, and not written through; a folder stays.

    Args:
        path: the file; its name is durable when ``sync`` was called for its folder.
        pieces: the content; when it raises an error, nothing is replaced.
        workshop: a folder of the same file system, where the file grows.
        mode: of the file, less the process's umask.
    """
    unfinished = workshop / unfinished_name()
    try:
        with unfinished.create(mode) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_name() -> str:
    """Give a new name to a file that grows somewhere, one that ``remove_unfinished`` knows."""
    return f"{_UNFINISHED}{secrets.token_hex(8)}"


def remove_unfinished(workshop: RootedPath) -> None:
    """Remove what killed writers left behind."""
    oldest = time.time() - _UNFINISHED_MAX_AGE
    for path, status in workshop.entries():
        if path.name.startswith(_UNFINISHED) and S_ISREG(status.st_mode) and status.st_mtime < oldest:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: RootedPath, seconds: float, stop: Event) -> Iterator[None]:
    """Keep others out who lock the same file; the lock goes with its process, also when that is killed.

    Args:
        path: the file, which is made and stays.
        seconds: how long to wait.
        stop: set when nobody waits for it any more.

    Raises:
        RegistryError: another one held it all the time, or nobody waits any more.
    """
    file = path.open_or_create()
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise RegistryError(
                    f"{path}: another program held this lock for {seconds:g} s; try again when it has ended",
                    is_temporary=True,
                )
            # Waiters must not march in step.
            if stop.wait(random.uniform(*_POLL_SECONDS)):  # noqa: S311 # no secret
                raise RegistryError(f"{path}: stopped waiting for it")
        yield
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Files that are whole or not there, also after a crash or a power cut, and a lock between programs."""

import fcntl
import os
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixcache_oci.errors import RegistryError

_UNFINISHED = ".nixcache-unfinished-"
_UNFINISHED_MAX_AGE = 24 * 3600  # seconds since the last write to it; then its writer is dead
_POLL_SECONDS = (0.005, 0.05)


def write_file(path: Path, pieces: Iterable[bytes], workshop: Path) -> None:
    """Replace a file at once: it is as it was, or whole and with its bytes on the disk.

    Args:
        path: the file; its name is durable when ``sync_folder`` was called for its folder.
        pieces: the content; when it raises an error, nothing is replaced.
        workshop: a folder of the same file system, where the file grows.
    """
    unfinished = unfinished_path(workshop)
    try:
        with unfinished.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_path(workshop: Path) -> Path:
    """Give a new name to a file that grows in this folder, one that ``remove_unfinished`` knows."""
    return workshop / f"{_UNFINISHED}{secrets.token_hex(8)}"


def remove_unfinished(workshop: Path) -> None:
    """Remove what killed writers left behind."""
    oldest = time.time() - _UNFINISHED_MAX_AGE
    for path in workshop.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def sync_folder(path: Path) -> None:
    """Make sure that the names of files that were made or renamed in a folder outlive a power cut."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Keep others out who lock the same file; the lock goes with its process, also when that is killed.

    Args:
        path: the file, which is made and stays.
        seconds: how long to wait.

    Raises:
        RegistryError: another one held it all the time.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise RegistryError(
                    f"{path}: another program held this lock for {seconds:g} s; try again when it has ended",
                    is_temporary=True,
                )
            time.sleep(random.uniform(*_POLL_SECONDS))  # noqa: S311 # no secret; waiters must not march in step
        yield
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

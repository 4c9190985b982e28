"""Files that are complete or absent, even after a crash or a power cut, and a lock between programs."""

import fcntl
import os
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event

from nixcache_oci.clients.rooted_path import FOR_ALL, RootedPath, WrongKindError
from nixcache_oci.errors import RegistryError

_UNFINISHED = ".nixcache-unfinished-"
_UNFINISHED_MAX_AGE = 24 * 3600  # seconds since the last write; after that, its writer is dead
_POLL_SECONDS = (0.005, 0.05)


def write_file(
    path: RootedPath, pieces: Iterable[bytes], workshop: RootedPath, *, mode: int = FOR_ALL
) -> None:
    """Replace a file atomically: it is as before, or complete with its bytes on the disk.

    A link, pipe or other non-folder in its place is replaced, not written through. Its name is durable once
    ``sync`` was called for its folder; if ``pieces`` raises, nothing is replaced.

    Args:
        path: of the file.
        pieces: of its content.
        workshop: a folder on the same file system, for the unfinished file.
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
    """Make a new name for an unfinished file, which ``remove_unfinished`` recognizes."""
    return f"{_UNFINISHED}{secrets.token_hex(8)}"


def remove_unfinished(workshop: RootedPath) -> list[str]:
    """Remove what killed writers left behind, and return the names of all finished files."""
    oldest = time.time() - _UNFINISHED_MAX_AGE
    finished = []
    for name in workshop.list_names():
        if not name.startswith(_UNFINISHED):
            finished.append(name)
            continue
        path = workshop / name
        with suppress(WrongKindError):
            status = path.stat()
            if status is not None and status.st_mtime < oldest:
                path.unlink(missing_ok=True)
    return finished


@contextmanager
def locked(path: RootedPath, seconds: float, stop: Event) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created; the kernel releases it when its process ends.

    Raises RegistryError if another program held it all these seconds, or ``stop`` was set: nobody waits any
    more.
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
            # Jitter, so that waiters do not poll in step.
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

"""What may lie where a file should be, in a folder that somebody else wrote."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR
from typing import Final, TypeAlias


def _link_to_a_pipe(path: Path, aside: Path) -> None:
    os.mkfifo(aside.with_name("pipe"))
    path.symlink_to(aside.with_name("pipe"))


def _socket(path: Path, _aside: Path) -> None:
    # Paths of sockets have at most 108 bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


_Maker: TypeAlias = Callable[[Path, Path], object]
LINKS: Final[dict[str, _Maker]] = {
    "link-to-what-was-there": lambda path, aside: path.symlink_to(aside),
    "dangling-link": lambda path, aside: path.symlink_to(aside.with_name("made-elsewhere")),
    "link-to-a-device": lambda path, _: path.symlink_to("/dev/zero"),
    "link-to-a-pipe": _link_to_a_pipe,
}
_OTHERS: Final[dict[str, _Maker]] = {
    "pipe": lambda path, _: os.mkfifo(path),
    "socket": _socket,
}
NO_FILES: Final[dict[str, _Maker]] = {
    **LINKS,
    **_OTHERS,
    "folder": lambda path, _: path.mkdir(),
}
NO_FOLDERS: Final[dict[str, _Maker]] = {
    **LINKS,
    **_OTHERS,
    "file": lambda path, _: path.write_bytes(b"file"),
}

_WORDS: Final = {"pipe": "a named pipe", "socket": "a socket", "folder": "a folder", "file": "a file"}


def state_below(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Tell all that a use of what is below a folder would change; see ``state_of``."""
    return {path: state_of(path) for path in folder.rglob("*")}


def state_of(path: Path) -> tuple[int, ...]:
    """Tell all that reading or writing a file would change; of a folder, not when it was listed: tests do."""
    status = path.lstat()
    read_at = 0 if S_ISDIR(status.st_mode) else status.st_atime_ns
    return status.st_mode, status.st_ino, status.st_nlink, status.st_size, status.st_mtime_ns, read_at


def put_in_place(kind: str, path: Path, elsewhere: Path) -> str:
    """Put something else where a file or folder is, or is not; gives what an error has to call it.

    Args:
        kind: of ``NO_FILES`` or ``NO_FOLDERS``.
        path: of the file or folder, which is moved away.
        elsewhere: an empty folder, for that and for what links lead to.
    """
    aside = elsewhere / "aside"
    if path.exists():
        path.rename(aside)
    {**NO_FILES, **NO_FOLDERS}[kind](path, aside)
    return f"{path} is {_WORDS.get(kind, 'a symbolic link')}, not a"

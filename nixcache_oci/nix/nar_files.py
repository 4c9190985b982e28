"""NARs of files: dumping from the file system, and restoring to it.

Source: as ``nar``; Nix manual, "use-case-hack".
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nar import (
    CHUNK_BYTES,
    EndDirectory,
    EntryName,
    Event,
    StartDirectory,
    StartFile,
    Symlink,
    encode,
)
from nixcache_oci.nix.nar_reader import parse

CASE_HACK: Final = b"~nix~case~hack~"
"""On case-insensitive file systems, Nix appends this and a number to names that differ in case only."""

_KINDS = {"p": "a fifo", "s": "a socket", "b": "a block device", "c": "a character device"}


def dump(path: Path, *, use_case_hack: bool = False) -> Iterator[bytes]:
    """Write the NAR of a file, symlink or directory, in pieces of at most ``CHUNK_BYTES``.

    A symlink is not followed. With ``use_case_hack``, names lose ``CASE_HACK``, as in Nix on macOS.

    Raises:
        FormatError: something that a NAR cannot hold, such as a fifo, or a file whose size changes meanwhile.
        OSError: something cannot be read.
    """
    return encode(_walk(os.fsencode(path), use_case_hack=use_case_hack))


def restore(chunks: Iterable[bytes], target: Path) -> None:
    """Unpack an untrusted NAR: nothing outside ``target``, whose parent exists, is touched.

    Only new names are created and existing ones never opened, so no link is followed. Modes are 0777 and 0666
    less the umask. If the NAR turns out to be bad, what was unpacked is removed.

    Raises:
        FormatError: not a NAR.
        FileExistsError: ``target`` exists, or two names are one to the file system.
        OSError: something cannot be written.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} already exists")
    try:
        _unpack(parse(chunks), target)
    except BaseException:
        _remove(target)
        raise


def _walk(root: bytes, *, use_case_hack: bool) -> Iterator[Event]:
    # A stack instead of recursion: a tree may be deeper than Python's stack.
    todo: list[bytes | EntryName | EndDirectory] = [root]
    while todo:
        match todo.pop():
            case bytes() as path:
                mode = os.lstat(path).st_mode
                if stat.S_ISREG(mode):
                    yield from _read_file(path)
                elif stat.S_ISLNK(mode):
                    yield Symlink(os.readlink(path))  # noqa: PTH115 -- pathlib would tidy the target
                elif stat.S_ISDIR(mode):
                    yield StartDirectory()
                    todo.append(EndDirectory())
                    for name, entry_path in _list_backwards(path, use_case_hack=use_case_hack):
                        todo += (entry_path, EntryName(name))
                else:
                    raise _not_storable(path, mode)
            case other:
                yield other


def _list_backwards(path: bytes, *, use_case_hack: bool) -> list[tuple[bytes, bytes]]:
    """List names to write with their paths, the last name first."""
    entries: dict[bytes, bytes] = {}
    with os.scandir(path) as files:
        for file in files:
            name = file.name.partition(CASE_HACK)[0] if use_case_hack else file.name
            if name in entries:
                raise FormatError(f"NAR: in {os.fsdecode(path)} two files are named {os.fsdecode(name)!r}")
            entries[name] = file.path
    return sorted(entries.items(), reverse=True)


def _read_file(path: bytes) -> Iterator[Event]:
    # It may have become a link or a fifo meanwhile: neither follow nor block.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _not_storable(path, status.st_mode)
        yield StartFile(status.st_size, executable=bool(status.st_mode & stat.S_IXUSR))
        left = status.st_size
        while piece := os.read(descriptor, min(left + 1, CHUNK_BYTES)):
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise FormatError(f"NAR: {os.fsdecode(path)} changed size while it was read; try again")
    finally:
        os.close(descriptor)


def _not_storable(path: bytes, mode: int) -> FormatError:
    kind = _KINDS.get(stat.filemode(mode)[0], "of an unknown kind")
    return FormatError(f"NAR: {os.fsdecode(path)} is {kind}; a NAR holds files, symlinks and directories")


def _unpack(events: Iterator[Event], target: Path) -> None:
    path = target
    parents: list[Path] = []
    for event in events:
        match event:
            case StartFile():
                _write_file(path, event, events)
            case Symlink():
                path.symlink_to(os.fsdecode(event.target))
            case StartDirectory():
                path.mkdir()
                parents.append(path)
            case EntryName():
                path = parents[-1] / os.fsdecode(event.name)
            case EndDirectory():
                parents.pop()


def _write_file(path: Path, start: StartFile, events: Iterator[Event]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    left = start.size
    with os.fdopen(os.open(path, flags, 0o777 if start.executable else 0o666), "wb") as file:
        while left:
            piece = cast("bytes", next(events))  # contents follow their start
            file.write(piece)
            left -= len(piece)


def _remove(target: Path) -> None:
    # Not shutil.rmtree: it recurses, and a tree may be deeper than Python's stack.
    directories: list[Path] = []
    todo = [target]
    while todo:
        path = todo.pop()
        if path.is_dir() and not path.is_symlink():
            directories.append(path)
            todo += path.iterdir()
        else:
            path.unlink(missing_ok=True)
    for path in reversed(directories):
        path.rmdir()

"""Paths below a folder in which others may have put anything: no link is followed, and nothing waited for.

The folder itself is the user's to name, and may be reached by links. Below it, each name is opened relative
to the folder before it (openat), so that nobody can put a link in the way between a look and its use. A file
is a regular file, which is decided on the open descriptor: a link would lead to any file that this user can
read, and a pipe would be waited for, for ever. Source: openat(2), open(2) on O_NOFOLLOW and O_NONBLOCK.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Final, Self

_KINDS: Final = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# With O_PATH, a folder that may be searched and not be listed is enough. Not every system has it.
_FOLDER: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOR_ALL: Final = 0o666  # less the umask, as usual


class WrongKindError(OSError):
    """Something lies where a file or folder of ours should be; its text names what, where, and the remedy."""

    def __init__(self, path: str, mode: int, wanted: str) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        remedy = f"put the {wanted} itself there, or remove it" if stat.S_ISLNK(mode) else "remove it"
        self.text = f"{path} is {kind}, not a {wanted}; {remedy}"
        super().__init__(errno.EINVAL, self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class RootedPath:
    """A path whose root is trusted, and nothing below it; all calls block.

    Args:
        root: the folder that the user named.
        names: of what lies below it, one for each folder on the way; see ``joinpath``.

    What cannot be done raises an OSError that names the whole path, such as a WrongKindError.
    """

    root: Path
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Self:
        """Take a file in a folder that is trusted.

        Raises:
            ValueError: the path names no file.
        """
        return cls(path.parent).joinpath(path.name)

    def __str__(self) -> str:
        return str(self.root.joinpath(*self.names))

    def __truediv__(self, name: str) -> Self:
        return self.joinpath(name)

    def joinpath(self, *names: str) -> Self:
        """Go further down.

        Raises:
            ValueError: one of them is no name of a file or folder.
        """
        for name in names:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"{name!r} names no file")
        return type(self)(self.root, (*self.names, *names))

    @property
    def name(self) -> str:
        """Give the last name; the root's is its own."""
        return self.names[-1] if self.names else self.root.name

    @property
    def parent(self) -> Self:
        """Give the folder that it lies in; the root's is the root."""
        return type(self)(self.root, self.names[:-1])

    def with_suffix(self, suffix: str) -> Self:
        """Give the file beside it that is named alike but for the suffix."""
        return self.parent / PurePath(self.name).with_suffix(suffix).name

    def open(self) -> int:
        """Open a file to be read; gives a descriptor, which is the caller's to close."""
        return self._open(os.O_RDONLY)

    def open_or_create(self) -> int:
        """Open a file to be read and written, and make it where there is none."""
        return self._open(os.O_RDWR | os.O_CREAT)

    def open_new(self, mode: int = FOR_ALL) -> int:
        """Make a file to be read and written; FileExistsError where anything has its name.

        Args:
            mode: of the file, less the umask.
        """
        with _in_parent(self) as folder:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
            return os.open(self.name, flags, mode, dir_fd=folder)

    def create(self, mode: int = FOR_ALL) -> IO[bytes]:
        """Open a new file to be written, as ``open_new`` does."""
        return os.fdopen(self.open_new(mode), "wb")

    def read_bytes(self, limit: int) -> bytes:
        """Read a small file: at most one byte over the limit, so that its parser refuses it."""
        with os.fdopen(self.open(), "rb") as file:
            return file.read(limit + 1)

    def stat(self) -> os.stat_result | None:
        """Tell of a file; None where there is none."""
        try:
            with _in_parent(self) as folder:
                status = _look(self, folder)
        except FileNotFoundError:
            return None
        return _check(status, stat.S_IFREG, self)

    def touch(self) -> None:
        """Make a file young."""
        with _in_parent(self) as folder:
            os.utime(self.name, dir_fd=folder, follow_symlinks=False)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file, or whatever is in its place but a folder."""
        try:
            with _in_parent(self) as folder:
                os.unlink(self.name, dir_fd=folder)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "RootedPath") -> None:
        """Give a file another name, and replace what has it but a folder."""
        with _in_parent(self) as folder, _in_parent(target) as other:
            try:
                os.rename(self.name, target.name, src_dir_fd=folder, dst_dir_fd=other)
            except IsADirectoryError:
                raise WrongKindError(str(target), stat.S_IFDIR, "file") from None

    def hardlink_to(self, file: "RootedPath") -> None:
        """Give a file this name as well; FileExistsError where anything has it."""
        with _in_parent(self) as folder, _in_parent(file) as other:
            os.link(file.name, self.name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)

    def make_folder(self, mode: int = 0o777) -> os.stat_result:
        """Make a folder, with those that it lies in; one that is there stays, and what it is like is told.

        Args:
            mode: of what is made below the root, less the umask.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for depth in range(1, len(self.names) + 1):
            above = type(self)(self.root, self.names[:depth])
            with _in_parent(above) as folder:
                try:
                    os.mkdir(above.name, mode, dir_fd=folder)
                except FileExistsError:
                    continue
        with _in_folder(self) as folder:
            return os.fstat(folder)

    def entries(self) -> Iterator[tuple[Self, os.stat_result]]:
        """List a folder, with what each entry is like, as itself and not as what a link leads to."""
        listed = _open_listed(self)
        try:
            with os.scandir(listed) as found:
                for entry in found:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # removed since
                    yield self / entry.name, status
        finally:
            os.close(listed)

    def sync(self) -> None:
        """Make sure that the names of files that were made or renamed in a folder outlive a power cut."""
        listed = _open_listed(self)
        try:
            os.fsync(listed)
        finally:
            os.close(listed)

    def _open(self, flags: int) -> int:
        with _in_parent(self) as folder:
            try:
                # Only lest a device is opened, which may do things; what counts is what was opened.
                _check(_look(self, folder), stat.S_IFREG, self)
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
            descriptor = os.open(self.name, flags | _FILE, FOR_ALL, dir_fd=folder)
        try:
            _check(os.fstat(descriptor), stat.S_IFREG, self)
        except WrongKindError:
            os.close(descriptor)
            raise
        return descriptor


@contextmanager
def _in_parent(path: RootedPath) -> Iterator[int]:
    """Open the folder that something lies in, for one action in it; errors name its path."""
    with _in_folder(path.parent) as folder:
        try:
            yield folder
        except OSError as error:
            # Where there is a name, it is what the system was given, relative to the folder.
            if not isinstance(error, WrongKindError) and error.filename in (None, path.name):
                error.filename, error.filename2 = str(path), None
            raise


@contextmanager
def _in_folder(path: RootedPath) -> Iterator[int]:
    folder = os.open(path.root, _FOLDER)
    try:
        for depth, name in enumerate(path.names, 1):
            try:
                below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            except OSError as error:
                above = RootedPath(path.root, path.names[:depth])
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    _check(_look(above, folder), stat.S_IFDIR, above)
                error.filename = str(above)
                raise
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)


def _open_listed(path: RootedPath) -> int:
    """Open a folder so that it can be listed and synced."""
    with _in_folder(path) as folder:
        try:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            error.filename = str(path)
            raise


def _look(path: RootedPath, folder: int) -> os.stat_result:
    return os.stat(path.name, dir_fd=folder, follow_symlinks=False)


def _check(status: os.stat_result, wanted: int, path: RootedPath) -> os.stat_result:
    if stat.S_IFMT(status.st_mode) != wanted:
        raise WrongKindError(str(path), status.st_mode, _KINDS[wanted].removeprefix("a "))
    return status

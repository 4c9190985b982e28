"""Paths below a folder in which others may have put anything: no link is followed, and no call hangs.

The user names the folder itself, which may be reached by links. Below it, each name is opened relative to its
parent's descriptor (openat), so that nobody can swap in a link between check and use. Only regular files are
opened, as checked on the open descriptor: a link could lead to any file that this user can read, and opening
a pipe could block forever. Source: openat(2), open(2) on O_NOFOLLOW and O_NONBLOCK.
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
# O_PATH, where the system has it, works for folders that may be searched but not listed.
_FOLDER: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOR_ALL: Final = 0o666  # less the umask, as usual


class WrongKindError(OSError):
    """Something else is where a file or folder should be; its text says what, where, and what to do."""

    def __init__(self, path: str, mode: int, wanted: str) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        hint = f"put the {wanted} itself there, or remove it" if stat.S_ISLNK(mode) else "remove it"
        self.text = f"{path} is {kind}, not a {wanted}; {hint}"
        super().__init__(errno.EINVAL, self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class RootedPath:
    """A path with a trusted root, which the user named, and nothing trusted below it; all calls block.

    Every method raises OSError with the whole path in it; WrongKindError is one.
    """

    root: Path
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Self:
        """Make a path to a file in a trusted folder; ValueError if the path names no file."""
        return cls(path.parent).joinpath(path.name)

    def __str__(self) -> str:
        return str(self.root.joinpath(*self.names))

    def __truediv__(self, name: str) -> Self:
        return self.joinpath(name)

    def joinpath(self, *names: str) -> Self:
        """Descend by these names; ValueError if one is no name of a file or folder."""
        for name in names:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"{name!r} names no file")
        return type(self)(self.root, (*self.names, *names))

    @property
    def name(self) -> str:
        """The last name; for the root, its own."""
        return self.names[-1] if self.names else self.root.name

    @property
    def parent(self) -> Self:
        """The parent folder; for the root, itself."""
        return type(self)(self.root, self.names[:-1])

    def with_suffix(self, suffix: str) -> Self:
        """Return the sibling that differs by its suffix."""
        return self.parent / PurePath(self.name).with_suffix(suffix).name

    def open(self) -> int:
        """Open a file for reading; the caller closes the descriptor."""
        return self._open(os.O_RDONLY)

    def open_or_create(self) -> int:
        """Open a file for reading and writing, and create it if it is missing."""
        return self._open(os.O_RDWR | os.O_CREAT)

    def open_new(self, mode: int = FOR_ALL) -> int:
        """Create a file, with this mode less the umask; FileExistsError if the name is taken."""
        with _in_parent(self) as folder:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
            return os.open(self.name, flags, mode, dir_fd=folder)

    def create(self, mode: int = FOR_ALL) -> IO[bytes]:
        """Create a file for writing, as ``open_new`` does."""
        return os.fdopen(self.open_new(mode), "wb")

    def read_bytes(self, limit: int) -> bytes:
        """Read a small file, as ``read_small`` does."""
        with os.fdopen(self.open(), "rb") as file:
            return file.read(limit + 1)

    def stat(self) -> os.stat_result | None:
        """Return a file's status; None if there is none."""
        try:
            with _in_parent(self) as folder:
                status = _look(self, folder)
        except FileNotFoundError:
            return None
        return _check(status, stat.S_IFREG, self)

    def touch(self) -> None:
        """Set a file's times to now."""
        with _in_parent(self) as folder:
            os.utime(self.name, dir_fd=folder, follow_symlinks=False)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file, or any non-folder in its place."""
        try:
            with _in_parent(self) as folder:
                os.unlink(self.name, dir_fd=folder)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "RootedPath") -> None:
        """Rename a file, replacing any non-folder at the target; WrongKindError for a folder."""
        with _in_parent(self) as folder, _in_parent(target) as other:
            try:
                os.rename(self.name, target.name, src_dir_fd=folder, dst_dir_fd=other)
            except IsADirectoryError:
                raise WrongKindError(str(target), stat.S_IFDIR, "file") from None

    def hardlink_to(self, file: "RootedPath") -> None:
        """Give a file this name as well; FileExistsError if it is taken."""
        with _in_parent(self) as folder, _in_parent(file) as other:
            os.link(file.name, self.name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)

    def make_folder(self, mode: int = 0o777) -> os.stat_result:
        """Create a folder and its parents, each with this mode less the umask; returns its status."""
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

    def list_names(self) -> list[str]:
        """List a folder without looking at its entries: there may be thousands."""
        listed = _open_listed(self)
        try:
            return os.listdir(listed)  # noqa: PTH208  # of a descriptor
        finally:
            os.close(listed)

    def entries(self) -> Iterator[tuple[Self, os.stat_result]]:
        """List a folder with each entry's own status: links are not followed."""
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
        """Make the names of files that were created or renamed in a folder survive a power cut."""
        listed = _open_listed(self)
        try:
            os.fsync(listed)
        finally:
            os.close(listed)

    def _open(self, flags: int) -> int:
        with _in_parent(self) as folder:
            try:
                # Only to avoid opening a device, which may have side effects; the check below decides.
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


def read_small(path: Path, limit: int) -> bytes:
    """Read a small file that the user named; of a larger one, one byte more than the limit, as a sign."""
    with path.open("rb") as file:
        return file.read(limit + 1)


@contextmanager
def _in_parent(path: RootedPath) -> Iterator[int]:
    """Open the parent folder for one action in it; errors name the whole path."""
    with _in_folder(path.parent) as folder:
        try:
            yield folder
        except OSError as error:
            # The name in the error, if any, is relative to the folder.
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
    """Open a folder for listing and syncing."""
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

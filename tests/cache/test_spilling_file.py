"""Tables go on elsewhere where a disk takes no more."""

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache import spilling_file
from nixcache_oci.cache.spilling_file import Fallback, SpillingFile
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_inflation import LimitedText
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError, LimitError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Full(FileIO):
    """A file on a disk that takes so many bytes, and no more."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path, "w+b")
        self._left = most

    def write(self, data: "ReadableBuffer", /) -> int:
        view = memoryview(data)[: self._left]
        if not view:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._left -= len(view)
        return super().write(view)


@contextmanager
def _disks(folder: Path, kept: int, temporary: int) -> Iterator[None]:
    """Have the index folder and that for temporary files take so many bytes; below 0 nothing can be made."""

    def open_full(name: str, most: int) -> FileIO:
        if most < 0:
            raise OSError(errno.EROFS, "Read-only file system")
        return _Full(folder / name, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilling_file, "_open_new", lambda _path: open_full("kept", kept))
        patch.setattr(spilling_file, "_open_temporary", lambda _fallback: open_full("temporary", temporary))
        yield


@given(st.lists(st.binary(max_size=20), max_size=10), st.integers(-1, 100), st.integers(-1, 100))
def test_nothing_is_lost_wherever_it_goes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], kept: int, temporary: int
) -> None:
    """Whenever a disk is full, what was written moves along, in order; and it is said once why."""
    told: list[OSError] = []
    content = b"".join(pieces)
    with _disks(tmp_path_factory.mktemp("disks"), kept, temporary):
        file = SpillingFile(RootedPath(Path("x")), Fallback(told.append))
        for piece in pieces:
            assert file.write(piece) == len(piece)
        if content:
            assert file.map()[:] == content
        file.close()
    assert file.is_kept == (not told) == (0 <= len(content) <= kept)
    assert len(told) <= 1


def test_memory_is_bounded(tmp_path: Path) -> None:
    """What nothing takes is an error; what is used no more can be used again."""
    elsewhere = Fallback(lambda _error: None, most_bytes=100)
    with _disks(tmp_path, -1, -1):
        first = SpillingFile(RootedPath(Path("a")), elsewhere)
        first.write(b"x" * 60)
        mapped = first.map()
        first.close()
        second = SpillingFile(RootedPath(Path("b")), elsewhere)
        with pytest.raises(OSError, match="no memory left for tables"):
            second.write(b"y" * 41)
        second.write(b"y" * 40)
        second.close()
        assert mapped[:] == b"x" * 60
        del mapped
        gc.collect()
        third = SpillingFile(RootedPath(Path("c")), elsewhere)
        third.write(b"z" * 100)
        third.close()


def test_without_another_place_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """Whoever writes a table for its own sake wants it where it belongs."""
    with _disks(tmp_path, 5, 100):
        file = SpillingFile(RootedPath(Path("x")), None)
        with pytest.raises(OSError, match="No space left"):
            file.write(b"123456")
        file.close()


def test_limits_hold_everywhere(tmp_path: Path) -> None:
    """A small blob can inflate to anything; no cache may fill other disks or the memory, either."""
    with _disks(tmp_path, 5, 100):
        file = SpillingFile(RootedPath(Path("x")), Fallback(lambda _error: None))
        text = LimitedText(file, TableBudget(most_bytes=20))
        text.limit = 10
        text.write(b"x" * 10)
        assert not file.is_kept
        with pytest.raises(FormatError, match="over 10 bytes"):
            text.write(b"x")
        text.limit = 100
        with pytest.raises(LimitError, match="over the limit of 20 bytes"):
            text.write(b"x" * 11)
        file.close()

"""Paths below a folder into which others may have put anything."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from nixcache_oci.clients import rooted_path
from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath, WrongKindError
from tests.support.odd_files import NO_FILES, put_in_place, state_below


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "../x", "a\0b"])
def test_a_name_names_one_file(tmp_path: Path, name: str) -> None:
    """No name leads up, to the root of the machine, or further down than one folder."""
    with pytest.raises(ValueError, match="names no file"):
        RootedPath(tmp_path) / name


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("open_it", [RootedPath.open, RootedPath.open_or_create])
async def test_what_counts_is_what_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, open_it: Callable[[RootedPath], int]
) -> None:
    """What is put in place behind a look at it is not waited for, followed or taken either."""
    (tmp_path / "aside").write_bytes(b"secret")
    regular = (tmp_path / "aside").stat()
    monkeypatch.setattr(rooted_path, "_look", lambda _path, _folder: regular)
    put_in_place(kind, tmp_path / "file", tmp_path)
    async with asyncio.timeout(10):
        with pytest.raises(OSError, match=str(tmp_path / "file")):
            await asyncio.to_thread(open_it, RootedPath(tmp_path) / "file")
    assert not (tmp_path / "made-elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_devices_are_not_opened(tmp_path: Path) -> None:
    """To open one may be to do something, such as to rewind a tape: 1, 3 is /dev/null, and harmless."""
    try:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("not even root may make devices here")
    with pytest.raises(WrongKindError, match="is a character device, not a file; remove it"):
        (RootedPath(tmp_path) / "device").read_bytes(10)


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "folder"])
def test_a_new_file_replaces_what_is_there(tmp_path: Path, kind: str) -> None:
    """It is not written through; what a link leads to stays as it is."""
    folder, elsewhere = RootedPath(tmp_path / "folder"), tmp_path / "elsewhere"
    folder.make_folder()
    elsewhere.mkdir()
    (tmp_path / "folder/file").write_bytes(b"before")
    put_in_place(kind, tmp_path / "folder/file", elsewhere)
    before = state_below(elsewhere)
    with pytest.raises(FileExistsError):
        (folder / "file").create()
    write_file(folder / "file", [b"after"], folder)
    assert (folder / "file").read_bytes(10) == b"after"
    assert state_below(elsewhere) == before


def test_errors_name_the_whole_path(tmp_path: Path) -> None:
    """What the system is given is relative to a folder, which is no help to anybody."""
    path = RootedPath(tmp_path) / "folder" / "file"
    jobs: list[Callable[[], object]] = [path.open, path.create, path.touch, path.unlink, path.parent.sync]
    jobs += [lambda: list(path.parent.entries())]
    for job in jobs:
        with pytest.raises(FileNotFoundError) as caught:
            job()
        assert str(caught.value.filename) == str(path.parent)
    path.parent.make_folder()
    for job in (path.open, path.touch, path.unlink):
        with pytest.raises(FileNotFoundError) as caught:
            job()
        assert caught.value.filename == str(path)

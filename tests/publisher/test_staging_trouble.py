import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixcache_oci.nix.nar import Directory, File
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.publisher import staging
from nixcache_oci.publisher.options import NarEncoding
from nixcache_oci.publisher.staging import (
    StagingFolderError,
    StagingStoppedError,
    stage,
)
from tests.nix.samples import TREE
from tests.publisher.made_store import MadeStore
from tests.publisher.staging_story import (
    ENCODINGS,
    LARGE,
    LARGE_FILE,
    Stager,
    count_reads,
    every_encoding,
)

# What is refused


@pytest.mark.parametrize("size", [10, LARGE])
def test_another_content_is_refused(store: MadeStore, stager: Stager, size: int) -> None:
    """What the store does not vouch for is not published under its name."""
    info = store.add("a", File(bytes(size)))
    store.real_path(info).write_bytes(bytes(size - 1) + b"1")
    stager.fails(info, "its files do not match what the store recorded", "--verify-path", "--repair-path")


def test_a_bit_of_a_mode_counts(store: MadeStore, stager: Stager) -> None:
    """What cannot be run any more is another object."""
    info = store.add("a", File(b"#!/bin/sh", executable=True))
    store.real_path(info).chmod(0o444)
    stager.fails(info, "its files do not match what the store recorded")


@pytest.mark.parametrize("size", [8, LARGE])
def test_what_has_shrunk_is_refused(store: MadeStore, stager: Stager, size: int) -> None:
    """A file that was cut short, such as by a disk that was full."""
    info = store.add("a", File(bytes(size)))
    os.truncate(store.real_path(info), 1)
    stager.fails(info, "its files do not match what the store recorded")


def test_what_has_grown_is_not_read_to_its_end(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room was made for what the store told: a small object that became a huge one stays out of memory."""
    info = store.add("a", File(b"small"))
    os.truncate(store.real_path(info), 2**40)
    reads = count_reads(monkeypatch)
    stager.fails(info, "its files do not match what the store recorded")
    assert len(reads) <= 2


def test_a_file_that_may_not_be_read(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named. (To root, who may read everything, an answer is made up.)"""
    info = store.add("a", Directory({b"secret": File(b"1")}))
    (store.real_path(info) / "secret").chmod(0)
    open_file = os.open

    def refuse(path: bytes, flags: int) -> int:
        if path.endswith(b"/secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_file(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    stager.fails(info, "secret cannot be read: Permission denied")


def test_an_object_that_is_not_there(store: MadeStore, stager: Stager) -> None:
    """The store's garbage collector was faster."""
    info = store.add("a", File(b"1"))
    store.real_path(info).unlink()
    stager.fails(info, "cannot be read: No such file or directory")


def test_a_file_that_vanishes_meanwhile(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, whatever bytes its name is made of, on one line that can be written anywhere."""
    names = (b"a", b"b", b"new\nline \xe9")
    info = store.add("a", Directory({name: File(LARGE_FILE.contents) for name in names}))

    def lose_at_first(path: Path, *, use_case_hack: bool) -> Iterator[bytes]:
        chunks = dump(path, use_case_hack=use_case_hack)
        yield next(chunks)
        (path / os.fsdecode(names[-1])).unlink()
        yield from chunks

    monkeypatch.setattr(staging, "dump", lose_at_first)
    text = stager.fails(info, "new\\nline", "cannot be read: No such file or directory")
    assert text.encode()


def test_what_a_nar_cannot_hold(store: MadeStore, stager: Stager) -> None:
    """Nothing is waited for, and it is named."""
    info = store.add("a", Directory({}))
    os.mkfifo(store.real_path(info) / "pipe\n")
    stager.fails(info, "pipe\\n is a fifo")


def test_a_description_that_makes_no_narinfo(store: MadeStore, stager: Stager) -> None:
    """A newer Nix may tell what this does not know: that path fails, and not the publish."""
    stager.fails(replace(store.add("a", File(b"1")), ca="newest:sha256:1"), "content address")


@every_encoding
def test_what_is_too_large_for_the_registry(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch, encoding: NarEncoding
) -> None:
    """It is refused by name, and long before all of it was compressed."""
    info = store.add("a", File(random.Random(3).randbytes(40 * 1024 * 1024)))
    reads = count_reads(monkeypatch)
    words = "over 1000000 bytes even compressed"
    stager.fails(info, words, encoding=encoding, max_blob_bytes=1_000_000)
    assert sum(reads) < info.nar_size / 2


def test_the_limit_itself_is_allowed(store: MadeStore, stager: Stager) -> None:
    """One byte decides, whether it is told at the end or before it, in a file or in memory."""
    for seed, node in (("small", File(b"1" * 100)), ("large", LARGE_FILE)):
        info = store.add(seed, node)
        for encoding in ENCODINGS:
            size = stager(info, encoding)[0].size
            stager(info, encoding, size)
            stager.fails(info, f"over {size - 1} bytes", encoding=encoding, max_blob_bytes=size - 1)


def test_a_large_nar_may_be_small_when_compressed(store: MadeStore, stager: Stager) -> None:
    """What counts is what would be sent."""
    info = store.add("a", File(bytes(LARGE)))
    staged, _ = stager(info, max_blob_bytes=100_000)
    assert staged.size < 100_000


# Trouble with the folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for one MiB; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk: only root may mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@every_encoding
def test_a_full_disk(store: MadeStore, small_disk: Path, encoding: NarEncoding) -> None:
    """The folder and the way out are named, and the room is given back."""
    info = store.add("a", LARGE_FILE)
    with pytest.raises(StagingFolderError, match=f"{small_disk}: no space left .* set TMPDIR"):
        stage(info, store.real_path(info), small_disk, encoding, lambda: False)
    assert list(small_disk.iterdir()) == []
    assert shutil.disk_usage(small_disk).used == 0


@pytest.fixture
def full_disk(small_disk: Path) -> Path:
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(2**20))
    return small_disk


def test_a_disk_that_is_full_at_the_end(store: MadeStore, full_disk: Path) -> None:
    """What is left in a buffer is written when the file is closed: that may fail, too."""
    info = store.add("a", File(bytes(LARGE)))
    with pytest.raises(StagingFolderError, match=f"{full_disk}: no space left"):
        stage(info, store.real_path(info), full_disk, NarEncoding(), lambda: False)
    assert [file.name for file in full_disk.iterdir()] == ["filler"]


def test_a_folder_that_may_not_be_written(store: MadeStore, tmp_path: Path) -> None:
    """Neither the path nor the registry is to blame: the folder is."""
    info = store.add("a", LARGE_FILE)
    with pytest.raises(StagingFolderError, match="nowhere: NARs cannot be staged there: No such file"):
        stage(info, store.real_path(info), tmp_path / "nowhere", NarEncoding(), lambda: False)


def test_small_objects_need_no_folder(store: MadeStore, tmp_path: Path) -> None:
    """They stay in memory: a thousand of them make no files."""
    info = store.add("a", TREE)
    assert stage(info, store.real_path(info), tmp_path / "nowhere", NarEncoding(), lambda: False).size > 0


# Giving up


@every_encoding
def test_who_is_told_to_stop_stops_soon(
    store: MadeStore, folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: NarEncoding
) -> None:
    """Within one piece, and no file stays behind."""
    info = store.add("a", LARGE_FILE)
    reads = count_reads(monkeypatch)
    with pytest.raises(StagingStoppedError, match="nobody wants it"):
        stage(info, store.real_path(info), folder, encoding, lambda: len(reads) == 3)
    assert len(reads) == 3
    assert list(folder.iterdir()) == []


def test_the_last_of_a_compression_can_be_given_up(
    store: MadeStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a high level, threads may have seconds of work left when all is read."""
    info = store.add("a", LARGE_FILE)
    reads = count_reads(monkeypatch)
    asked_at_end = 0

    def is_stopped() -> bool:
        nonlocal asked_at_end
        asked_at_end += sum(reads) == info.nar_size
        return asked_at_end > 1

    with pytest.raises(StagingStoppedError):
        stage(info, store.real_path(info), folder, NarEncoding(), is_stopped)
    assert list(folder.iterdir()) == []

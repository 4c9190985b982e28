import contextlib
import errno
import hashlib
import lzma
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import StoreError, UsageError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import CHUNK_BYTES, Directory, File, Node, Symlink
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher import staging
from nixcache_oci.publisher.staging import (
    LARGE_NAR_BYTES,
    Compression,
    Packing,
    StagedNar,
    StagingFolderError,
    StagingStoppedError,
    is_large,
    stage,
)
from tests.nix.samples import TREE
from tests.publisher.made_store import MadeStore, real_infos
from tests.support.nix import NixSandbox

LARGE = 5 * 1024 * 1024
LARGE_FILE = File(random.Random(1).randbytes(LARGE // 2).hex().encode())  # compresses to about half
COMPRESSIONS: tuple[Compression, ...] = ("zstd", "xz", "none")


@pytest.fixture
def store(tmp_path: Path) -> MadeStore:
    return MadeStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


class Stager:
    """Stages objects of one store into one folder; every answer is checked."""

    def __init__(self, store: MadeStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def __call__(self, info: PathInfo, packing: Packing | None = None) -> tuple[StagedNar, bytes]:
        packing = packing or Packing()
        staged = stage(info, self._store.real_path(info), self._folder, packing, lambda: False)
        content = staged.read()
        assert isinstance(staged.content, Path) == is_large(info)
        staged.discard()
        assert list(self._folder.iterdir()) == []
        assert (staged.digest, staged.size) == (Digest.of(content), len(content))
        return staged, content

    def fails(self, info: PathInfo, *words: str, packing: Packing | None = None) -> str:
        """It is refused by name, on one line, and leaves no file."""
        with pytest.raises(StoreError) as error:
            self(info, packing)
        text = str(error.value)
        assert text.startswith(f"{info.store_path}: ")
        assert "\n" not in text
        for word in words:
            assert word in text
        assert list(self._folder.iterdir()) == []
        return text


@pytest.fixture
def stager(store: MadeStore, folder: Path) -> Stager:
    return Stager(store, folder)


def nix_hash(content: bytes) -> NixHash:
    return NixHash(hashlib.sha256(content).digest())


# xz at a level at which it does not hold the tests up.
PACKINGS = tuple(Packing(compression, 0 if compression == "xz" else None) for compression in COMPRESSIONS)
every_packing = pytest.mark.parametrize("packing", PACKINGS, ids=COMPRESSIONS)


def unpack(staged: StagedNar, content: bytes) -> bytes:
    match staged.narinfo.compression:
        case "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(content)
        case "xz":
            return lzma.decompress(content)
        case _:
            return content


def test_a_narinfo_says_all(store: MadeStore, stager: Stager) -> None:
    """What the store knows is passed on, and what was staged is described."""
    info = store.add("a", File(b"contents"), references=["a", "b"])
    info = replace(info, deriver=f"{'0' * 32}-a.drv", ca=f"fixed:r:{info.nar_hash}")
    staged, content = stager(info)
    narinfo = staged.narinfo
    assert narinfo.url == f"nar/{Digest.of(content).hex}.nar.zst"
    assert narinfo.file_hash == nix_hash(content)
    assert narinfo.file_size == len(content)
    assert (narinfo.store_path, narinfo.nar_hash, narinfo.nar_size) == (
        info.store_path,
        info.nar_hash,
        info.nar_size,
    )
    assert (narinfo.references, narinfo.deriver, narinfo.ca) == (info.references, info.deriver, info.ca)


@pytest.mark.needs("nix")
def test_objects_are_dumped_as_nix_dumps_them(nix: NixSandbox, folder: Path, tmp_path: Path) -> None:
    """Executables, links, empty folders, odd names: what is decompressed is ``nix-store --dump``'s."""
    odd = tmp_path / "odd"
    (odd / "empty dir").mkdir(parents=True)
    for name in (b"new\nline", b"\xe9 latin", b" ", b".hidden", b"~nix~case~hack~1", b"A", b"a"):
        (odd / os.fsdecode(name)).write_bytes(name)
    (odd / "run").write_text("#!/bin/sh\n")
    (odd / "run").chmod(0o755)
    (odd / "dangling").symlink_to("../nowhere")
    link = tmp_path / "link"
    link.symlink_to("/nowhere")
    paths = [
        *nix.build_paths(7),
        nix.build_file("large", LARGE_FILE.contents),
        nix.add_path(odd),
        nix.add_path(link),
    ]
    infos = {str(info.store_path): info for info in real_infos(nix, paths)}
    assert len(infos) == len(paths)
    for path in paths:
        for packing in PACKINGS:
            staged = stage(infos[path], nix.physical(path), folder, packing, lambda: False)
            assert unpack(staged, staged.read()) == nix.dump(path)
            staged.discard()


@pytest.mark.needs("nix")
@every_packing
def test_nix_unpacks_it(nix: NixSandbox, folder: Path, tmp_path: Path, packing: Packing) -> None:
    """Nix's own decompressors take what several threads wrote, and a frame that does not tell its size."""
    paths = [*nix.build_paths(4), nix.build_file("large", LARGE_FILE.contents)]
    cache = tmp_path / "cache"
    (cache / "nar").mkdir(parents=True)
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    for info in real_infos(nix, paths):
        real_path = nix.physical(str(info.store_path))
        staged = stage(info, real_path, folder, packing, lambda: False)
        (cache / staged.narinfo.url).write_bytes(staged.read())
        (cache / f"{info.store_path.hash_part}.narinfo").write_text(staged.narinfo.render())
        staged.discard()
    copied = nix.realise(paths, substituters=[f"file://{cache}"], require_sigs=False).check()
    for path in paths:
        assert nix.dump(path, copied.store) == nix.dump(path)


@every_packing
@pytest.mark.parametrize("node", [TREE, LARGE_FILE, Symlink(b"a"), File(b"")])
def test_what_is_staged_can_be_unpacked(
    store: MadeStore, stager: Stager, node: Node, packing: Packing
) -> None:
    """What comes out has the NarHash that the store told."""
    info = store.add("a", node)
    staged, content = stager(info, packing)
    nar = unpack(staged, content)
    assert (len(nar), nix_hash(nar)) == (info.nar_size, info.nar_hash)


@pytest.mark.parametrize(("compression", "levels"), [("zstd", (1, 3, 19)), ("xz", (0, 6, 9)), ("none", (0,))])
def test_every_level_that_is_allowed_works(
    store: MadeStore, stager: Stager, compression: Compression, levels: tuple[int, ...]
) -> None:
    """The limits that are told are those of the compressors."""
    info = store.add("a", File(b"contents" * 1000))
    for level in levels:
        staged, content = stager(info, Packing(compression, level))
        assert len(unpack(staged, content)) == info.nar_size


@pytest.mark.parametrize(
    ("compression", "level", "words"),
    [
        ("zstd", 0, "zstd takes 1 to 19"),
        ("zstd", 20, "zstd takes 1 to 19"),
        ("zstd", -1, "zstd takes 1 to 19"),
        ("xz", 10, "xz takes 0 to 9"),
        ("none", 1, "without compression there are no levels"),
    ],
)
def test_a_level_that_is_none_is_refused(compression: Compression, level: int, words: str) -> None:
    """Before anything begins, and with those that there are."""
    with pytest.raises(UsageError, match=words):
        Packing(compression, level)


# The same bytes


def threads_of(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: count)


def test_the_number_of_cores_does_not_change_the_bytes(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, or the next run, finds the blobs that are there already.

    Several jobs of the compressor's threads, 8 MiB each at this level, are needed to tell.
    """
    monkeypatch.setattr(staging, "_MOST_THREADS", 8)
    info = store.add("a", File(random.Random(2).randbytes(13 * 1024 * 1024).hex().encode()))
    digests = set()
    for count in (1, 2, 4, 7):
        threads_of(monkeypatch, count)
        digests.add(stager(info)[0].digest)
    assert len(digests) == 1


def test_the_pieces_that_are_read_do_not_change_the_bytes(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does how the dump happens to be cut, and whether something else keeps the machine busy."""
    info = store.add("a", LARGE_FILE)
    small = store.add("b", TREE)
    whole = [stager(info)[0].digest, stager(small)[0].digest]
    for size in (1000, 65536, 3 * CHUNK_BYTES + 1):
        monkeypatch.setattr(staging, "dump", recut(size))
        assert [stager(info)[0].digest, stager(small)[0].digest] == whole


def recut(size: int) -> Callable[..., Iterator[bytes]]:
    """Make a dump whose pieces have this size."""

    def recut_dump(path: Path, *, use_case_hack: bool) -> Iterator[bytes]:
        nar = b"".join(dump(path, use_case_hack=use_case_hack))
        return (nar[start : start + size] for start in range(0, len(nar), size))

    return recut_dump


def test_no_more_threads_than_memory_allows(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread of the compressor takes memory, and a large machine has many cores."""
    asked: list[int] = []
    make = zstandard.ZstdCompressor

    def note(*, level: int, threads: int) -> zstandard.ZstdCompressor:
        asked.append(threads)
        return make(level=level, threads=threads)

    monkeypatch.setattr(zstandard, "ZstdCompressor", note)
    threads_of(monkeypatch, 128)
    stager(store.add("large", LARGE_FILE))
    stager(store.add("small", File(b"small")))
    assert asked == [4, 0]


# What is refused


@pytest.mark.parametrize("size", [10, LARGE])
def test_another_content_is_refused(store: MadeStore, stager: Stager, size: int) -> None:
    """What the store does not vouch for is not published under its name."""
    info = store.add("a", File(bytes(size)))
    store.real_path(info).write_bytes(bytes(size - 1) + b"1")
    stager.fails(info, "its files are not what the store says", "--verify-path", "--repair-path")


def test_a_bit_of_a_mode_counts(store: MadeStore, stager: Stager) -> None:
    """What cannot be run any more is another object."""
    info = store.add("a", File(b"#!/bin/sh", executable=True))
    store.real_path(info).chmod(0o444)
    stager.fails(info, "its files are not what the store says")


@pytest.mark.parametrize("size", [8, LARGE])
def test_what_has_shrunk_is_refused(store: MadeStore, stager: Stager, size: int) -> None:
    """A file that was cut short, such as by a disk that was full."""
    info = store.add("a", File(bytes(size)))
    os.truncate(store.real_path(info), 1)
    stager.fails(info, "its files are not what the store says")


def test_what_has_grown_is_not_read_to_its_end(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room was made for what the store told: a small object that became a huge one stays out of memory."""
    info = store.add("a", File(b"small"))
    os.truncate(store.real_path(info), 2**40)
    reads = count_reads(monkeypatch)
    stager.fails(info, "its files are not what the store says")
    assert len(reads) <= 2


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the pieces that were dumped."""
    sizes: list[int] = []

    def counting_dump(path: Path, *, use_case_hack: bool) -> Iterator[bytes]:
        for piece in dump(path, use_case_hack=use_case_hack):
            sizes.append(len(piece))
            yield piece

    monkeypatch.setattr(staging, "dump", counting_dump)
    return sizes


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


@every_packing
def test_what_is_too_large_for_the_registry(
    store: MadeStore, stager: Stager, monkeypatch: pytest.MonkeyPatch, packing: Packing
) -> None:
    """It is refused by name, and long before all of it was compressed."""
    info = store.add("a", File(random.Random(3).randbytes(40 * 1024 * 1024)))
    reads = count_reads(monkeypatch)
    limited = replace(packing, max_blob_bytes=1_000_000)
    stager.fails(info, "over 1000000 bytes even compressed", packing=limited)
    assert sum(reads) < info.nar_size / 2


def test_the_limit_itself_is_allowed(store: MadeStore, stager: Stager) -> None:
    """One byte decides, whether it is told at the end or before it, in a file or in memory."""
    for seed, node in (("small", File(b"1" * 100)), ("large", LARGE_FILE)):
        info = store.add(seed, node)
        for packing in PACKINGS:
            size = stager(info, packing)[0].size
            stager(info, replace(packing, max_blob_bytes=size))
            stager.fails(info, f"over {size - 1} bytes", packing=replace(packing, max_blob_bytes=size - 1))


def test_a_large_nar_may_be_small_when_compressed(store: MadeStore, stager: Stager) -> None:
    """What counts is what would be sent."""
    info = store.add("a", File(bytes(LARGE)))
    staged, _ = stager(info, Packing(max_blob_bytes=100_000))
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


@every_packing
def test_a_full_disk(store: MadeStore, small_disk: Path, packing: Packing) -> None:
    """The folder and the way out are named, and the room is given back."""
    info = store.add("a", LARGE_FILE)
    with pytest.raises(StagingFolderError, match=f"{small_disk}: no space left .* set TMPDIR"):
        stage(info, store.real_path(info), small_disk, packing, lambda: False)
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
        stage(info, store.real_path(info), full_disk, Packing(), lambda: False)
    assert [file.name for file in full_disk.iterdir()] == ["filler"]


def test_a_folder_that_may_not_be_written(store: MadeStore, tmp_path: Path) -> None:
    """Neither the path nor the registry is to blame: the folder is."""
    info = store.add("a", LARGE_FILE)
    with pytest.raises(StagingFolderError, match="nowhere: NARs cannot be staged there: No such file"):
        stage(info, store.real_path(info), tmp_path / "nowhere", Packing(), lambda: False)


def test_small_objects_need_no_folder(store: MadeStore, tmp_path: Path) -> None:
    """They stay in memory: a thousand of them make no files."""
    info = store.add("a", TREE)
    assert stage(info, store.real_path(info), tmp_path / "nowhere", Packing(), lambda: False).size > 0


# Giving up


@every_packing
def test_who_is_told_to_stop_stops_soon(
    store: MadeStore, folder: Path, monkeypatch: pytest.MonkeyPatch, packing: Packing
) -> None:
    """Within one piece, and no file stays behind."""
    info = store.add("a", LARGE_FILE)
    reads = count_reads(monkeypatch)
    with pytest.raises(StagingStoppedError, match="nobody wants it"):
        stage(info, store.real_path(info), folder, packing, lambda: len(reads) == 3)
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
        stage(info, store.real_path(info), folder, Packing(), is_stopped)
    assert list(folder.iterdir()) == []


def test_an_object_just_below_the_line_stays_in_memory(store: MadeStore, stager: Stager) -> None:
    """Where a file begins is told by the size that the store tells."""
    overhead = store.add("empty", File(b"")).nar_size
    below, above = (
        store.add(f"of-{size}", File(bytes(size)))
        for size in (LARGE_NAR_BYTES - overhead - 8, LARGE_NAR_BYTES)
    )
    assert not is_large(below)
    assert is_large(above)
    stager(below)
    stager(above)

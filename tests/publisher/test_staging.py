import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.errors import UsageError
from nixcache_oci.nix.nar import CHUNK_BYTES, File, Node, Symlink
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher import staging
from nixcache_oci.publisher.options import Compression, NarEncoding
from nixcache_oci.publisher.staging import (
    LARGE_NAR_BYTES,
    is_large,
    stage,
)
from tests.nix.samples import TREE
from tests.publisher.made_store import MadeStore, real_infos
from tests.publisher.staging_story import (
    LARGE_FILE,
    Stager,
    every_encoding,
    nix_hash,
    unpack,
)
from tests.support.nix import NixSandbox


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
@every_encoding
def test_nix_unpacks_it(nix: NixSandbox, folder: Path, tmp_path: Path, encoding: NarEncoding) -> None:
    """Nix's own decompressors take what several threads wrote, and a frame that does not tell its size."""
    paths = [*nix.build_paths(4), nix.build_file("large", LARGE_FILE.contents)]
    cache = tmp_path / "cache"
    (cache / "nar").mkdir(parents=True)
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    for info in real_infos(nix, paths):
        real_path = nix.physical(str(info.store_path))
        staged = stage(info, real_path, folder, encoding, lambda: False)
        (cache / staged.narinfo.url).write_bytes(staged.read())
        (cache / f"{info.store_path.hash_part}.narinfo").write_text(staged.narinfo.render())
        staged.discard()
    copied = nix.realise(paths, substituters=[f"file://{cache}"], require_sigs=False).check()
    for path in paths:
        assert nix.dump(path, copied.store) == nix.dump(path)


@every_encoding
@pytest.mark.parametrize("node", [TREE, LARGE_FILE, Symlink(b"a"), File(b"")])
def test_what_is_staged_can_be_unpacked(
    store: MadeStore, stager: Stager, node: Node, encoding: NarEncoding
) -> None:
    """What comes out has the NarHash that the store told."""
    info = store.add("a", node)
    staged, content = stager(info, encoding)
    nar = unpack(staged, content)
    assert (len(nar), nix_hash(nar)) == (info.nar_size, info.nar_hash)


@pytest.mark.parametrize(("compression", "levels"), [("zstd", (1, 3, 19)), ("xz", (0, 6, 9)), ("none", (0,))])
def test_every_level_that_is_allowed_works(
    store: MadeStore, stager: Stager, compression: Compression, levels: tuple[int, ...]
) -> None:
    """The limits that are told are those of the compressors."""
    info = store.add("a", File(b"contents" * 1000))
    for level in levels:
        staged, content = stager(info, NarEncoding(compression, level))
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
        NarEncoding(compression, level)


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

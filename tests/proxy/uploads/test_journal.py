"""The journal: what a crash may tear, what shares a sync, and which files go."""

import asyncio
import os
from pathlib import Path

import pytest

from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.proxy.uploads import journal as module
from nixcache_oci.proxy.uploads.journal import Journal, Kind

_RECORDS = [(Kind.PATH, b"one", b"a NAR"), (Kind.SIGNATURES, b"two", b""), (Kind.PATH, b"three", b"x" * 100)]


def _journal(folder: Path) -> Journal:
    return Journal(RootedPath(folder))


def _load(folder: Path) -> list[tuple[Kind, bytes, bytes]]:
    journal = _journal(folder)
    return [(one.kind, one.text, journal.read(one.place)) for one in journal.load()]


async def test_what_is_torn_ends_the_file(tmp_path: Path) -> None:
    """Cut or changed anywhere: what is whole before it is there, and what comes later is, too."""
    journal = _journal(tmp_path)
    ends = [0]
    for record in _RECORDS:
        await journal.append(*record)
        ends.append(journal.size)
    file = tmp_path / "1"
    content = file.read_bytes()
    for length in range(len(content)):
        whole = sum(end <= length for end in ends[1:])
        file.write_bytes(content[:length])
        assert _load(tmp_path) == _RECORDS[:whole]
        changed = bytearray(content)
        changed[length] ^= 1
        file.write_bytes(changed)
        again = _journal(tmp_path)
        assert len(list(again.load())) == whole
        await again.append(Kind.PATH, b"later")
        assert _load(tmp_path) == [*_RECORDS[:whole], (Kind.PATH, b"later", b"")]


async def test_those_that_wait_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the first, and one for all that came meanwhile; none is told before its own."""
    synced: list[int] = []
    sync = os.fdatasync

    def count(file: int) -> None:
        sync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fdatasync", count)
    journal = _journal(tmp_path)

    async def append(number: int) -> None:
        place = await journal.append(Kind.PATH, b"text", bytes(number))
        assert synced[-1] >= place.start + place.size

    first = asyncio.create_task(append(0))
    await asyncio.sleep(0)
    await asyncio.gather(first, *(append(number) for number in range(1, 50)))
    assert len(synced) == 2


async def test_a_file_goes_when_nothing_in_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a full one is not written to: whatever stays keeps one file."""
    monkeypatch.setattr(module, "FILE_BYTES", 100)
    journal = _journal(tmp_path)
    places = [await journal.append(Kind.PATH, bytes(60)) for _ in range(4)]
    assert [place.file for place in places] == [1, 1, 2, 2]
    journal.release(places[0])
    journal.note(places[0], Kind.PATH_GONE, b"gone")
    await journal.settle()
    assert [kind for kind, *_ in _load(tmp_path)] == [
        Kind.PATH,
        Kind.PATH,
        Kind.PATH_GONE,
        Kind.PATH,
        Kind.PATH,
    ]
    for place in places[1:]:
        journal.release(place)
    await journal.settle()
    assert (sorted(os.listdir(tmp_path)), journal.size) == ([], 0)  # noqa: PTH208  iterdir() is for threads
    await journal.append(Kind.PATH, b"text")
    assert _load(tmp_path) == [(Kind.PATH, b"text", b"")]


async def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All who waited for it are told, and the next record follows the last good one."""
    journal = _journal(tmp_path)
    await journal.append(*_RECORDS[0])

    def fail(_: int) -> None:
        raise OSError(5, "the disk failed")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        waiting = [journal.append(*record) for record in _RECORDS]
        failed = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in failed] == [OSError] * 3
    await journal.append(*_RECORDS[1])
    assert _load(tmp_path) == _RECORDS[:2]


async def test_a_full_disk_keeps_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes need space, and what they are about may be what has it: files go all the same."""
    monkeypatch.setattr(module, "FILE_BYTES", 100)
    journal = _journal(tmp_path)
    places = [await journal.append(Kind.PATH, bytes(60)) for _ in range(3)]

    def fail(file: int, content: bytes, start: int) -> int:
        os.ftruncate(file, start + len(content) // 2)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        for place in (places[0], places[2]):
            journal.note(place, Kind.PATH_GONE, b"gone")
        journal.release(places[2])
        await journal.settle()
        assert sorted(os.listdir(tmp_path)) == ["1"]  # noqa: PTH208  as above
    await journal.append(Kind.PATH, b"text")
    assert _load(tmp_path) == [(Kind.PATH, bytes(60), b"")] * 2 + [(Kind.PATH, b"text", b"")]

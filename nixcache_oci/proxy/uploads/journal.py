"""The journal: narinfos that were uploaded, one after another in files, each with its NAR if that is small.

Uploads that wait at the same time share one write and one sync. A record is the length and CRC-32 of what
follows, its kind, the length of its narinfo, the narinfo, and the NAR. What a crash tore was not
acknowledged, and ends its file. A file is removed when nothing in it is needed any more.
"""

import asyncio
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.clients.rooted_path import RootedPath

FILE_BYTES: Final = 16 * 1024 * 1024
"""A file of this size is full: a path that stays keeps no more than that on the disk."""

_log = logging.getLogger(__name__)

_FRAME: Final = struct.Struct(">II")  # length and CRC-32 of what follows
_HEAD: Final = struct.Struct(">BI")  # kind, and length of the narinfo
_MOST_RECORD_BYTES: Final = 4 * 1024 * 1024


class Kind(IntEnum):
    """What a record says."""

    PATH = 1  # a path came, or has more signatures
    SIGNATURES = 2  # a path that the cache lists has more signatures
    PATH_GONE = 3  # the path with this hash part has left the spool
    SIGNATURES_GONE = 4


_KINDS: Final = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is."""

    file: int  # its number
    start: int  # of its NAR
    size: int  # of its NAR; 0 if that is elsewhere


@dataclass(frozen=True, slots=True)
class Loaded:
    """One record of an earlier run."""

    kind: Kind
    text: bytes
    place: Place


@dataclass(frozen=True, slots=True)
class _Job:
    """A record that waits to be written."""

    record: bytes
    nar_size: int
    done: "asyncio.Future[Place]"


class Journal:
    """All files of a folder; ``load`` them first. Its state changes on the event loop only."""

    def __init__(self, folder: RootedPath) -> None:
        self._folder = folder
        self._sizes: dict[int, int] = {}  # of files, by number
        self._needed: dict[int, int] = {}  # how often ``need`` was called for places in them
        self._number = 0  # of the newest file
        self._waiting: list[_Job] = []
        self._notes: dict[int, list[bytes]] = {}  # by file
        self._turn = asyncio.Lock()  # held while files are written
        self._writing: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self._sizes.values())

    async def append(self, kind: Kind, text: bytes, nar: bytes = b"") -> Place:
        """Write a record, and wait until it is on the disk; its place is needed from then on.

        Raises OSError if the disk failed.
        """
        done: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(_render(kind, text, nar), len(nar), done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="write the journal")
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            done.add_done_callback(self._release_if_written)
            raise

    def need(self, place: Place) -> None:
        """Keep a place until ``release`` was called as often."""
        self._needed[place.file] = self._needed.get(place.file, 0) + 1

    def release(self, place: Place) -> None:
        """Need a place no longer; a file of which nothing is needed is removed by ``settle``."""
        self._needed[place.file] -= 1
        if not self._needed[place.file]:
            del self._needed[place.file]

    def note(self, place: Place, kind: Kind, text: bytes) -> None:
        """Say more about a place, as of the next ``settle``; a power cut may take it back."""
        self._notes.setdefault(place.file, []).append(_render(kind, text, b""))

    async def settle(self) -> None:
        """Write notes if there is space, and remove files of which nothing is needed.

        Raises OSError if a file cannot be removed.
        """
        async with self._turn:
            empty, notes = self._forget_empty(), self._notes
            self._notes = {}
            kept = {number: b"".join(records) for number, records in notes.items() if number in self._sizes}
            for number in await run_in_thread(self._clean, empty, kept):
                self._sizes[number] += len(kept[number])

    def read(self, place: Place) -> bytes:
        """Read a NAR; blocks."""
        file = self._path(place.file).open()
        try:
            return os.pread(file, place.size, place.start)
        finally:
            os.close(file)

    def load(self) -> Iterator[Loaded]:
        """Give what earlier runs wrote, in order; blocks. Call ``need`` for what stays, and ``settle``."""
        found = {int(path.name): path for path, _ in self._folder.entries() if path.name.isdecimal()}
        for number, path in sorted(found.items()):
            self._number = number
            file = path.open_or_create()
            try:
                end = 0
                for loaded, after in _read(file, number):
                    yield loaded
                    end = after
                if (size := os.fstat(file).st_size) > end:
                    fields = {"file": str(path), "bytes": size - end}
                    _log.warning("end of the journal is torn, and dropped", extra={"fields": fields})
                    os.ftruncate(file, end)
            finally:
                os.close(file)
            self._sizes[number] = end

    def _release_if_written(self, done: "asyncio.Future[Place]") -> None:
        if not done.cancelled() and done.exception() is None:
            self.release(done.result())

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                async with self._turn:
                    jobs, self._waiting = self._waiting, []
                    await self._write_group(jobs)
        finally:
            self._writing = None

    async def _write_group(self, jobs: Sequence[_Job]) -> None:
        """Write some records, and let those go on who wait for them."""
        if self._sizes.get(self._number, FILE_BYTES) >= FILE_BYTES:
            self._number += 1
        number, end = self._number, self._sizes.get(self._number, 0)
        try:
            await run_in_thread(self._write, number, end, b"".join(job.record for job in jobs))
        except OSError as error:
            for job in jobs:
                job.done.set_exception(error)
            return
        for job in jobs:
            end += len(job.record)
            place = Place(number, end - job.nar_size, job.nar_size)
            self.need(place)
            job.done.set_result(place)
        self._sizes[number] = end

    def _forget_empty(self) -> list[int]:
        empty = [number for number in self._sizes if number not in self._needed]
        for number in empty:
            del self._sizes[number]
        return empty

    def _write(self, number: int, end: int, records: bytes) -> None:
        self._write_records(number, end, records, sync=os.fdatasync)
        if not end:
            self._folder.sync()

    def _write_records(
        self, number: int, end: int, records: bytes, sync: Callable[[int], object] = lambda _: None
    ) -> None:
        file = self._path(number).open_or_create()
        try:
            _write_at(file, end, records)
            sync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, end)
            raise
        finally:
            os.close(file)

    def _clean(self, empty: Iterable[int], notes: Mapping[int, bytes]) -> list[int]:
        """Remove files, write notes, and return in which files there was space for them."""
        for number in empty:
            self._path(number).unlink(missing_ok=True)
        written = []
        for number, records in notes.items():
            try:
                self._write_records(number, self._sizes[number], records)
            except OSError as error:
                _log.warning("journal not written", extra={"fields": {"error": str(error)}})
            else:
                written.append(number)
        return written

    def _path(self, number: int) -> RootedPath:
        return self._folder / str(number)


def _render(kind: Kind, text: bytes, nar: bytes) -> bytes:
    head = _HEAD.pack(kind, len(text))
    checksum = zlib.crc32(nar, zlib.crc32(text, zlib.crc32(head)))
    return b"".join((_FRAME.pack(len(head) + len(text) + len(nar), checksum), head, text, nar))


def _write_at(file: int, start: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written


def _read(file: int, number: int) -> Iterator[tuple[Loaded, int]]:
    """Give the records of a file up to the first that is torn, each with where it ends."""
    position = 0
    while len(frame := os.pread(file, _FRAME.size, position)) == _FRAME.size:
        length, checksum = _FRAME.unpack(frame)
        if not _HEAD.size <= length <= _MOST_RECORD_BYTES:
            return
        content = os.pread(file, length, position + _FRAME.size)
        if len(content) != length or zlib.crc32(content) != checksum:
            return
        kind, text_length = _HEAD.unpack_from(content)
        end, nar_start = position + _FRAME.size + length, _HEAD.size + text_length
        if kind not in _KINDS or nar_start > length:
            return
        place = Place(number, position + _FRAME.size + nar_start, length - nar_start)
        yield Loaded(Kind(kind), content[_HEAD.size : nar_start], place), end
        position = end

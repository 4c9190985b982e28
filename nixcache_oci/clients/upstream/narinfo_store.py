"""Narinfos that upstreams gave, in memory and on disk: they never change, and a restart forgets none.

The file is a log: a line that names upstream, hash part, time, length and checksum, then the narinfo as the
upstream gave it; an empty one says that it was forgotten. What is read of it is parsed and checked like an
upstream's answer. It decides where requests go, so a file that others may have written is not read. Processes
may share it; what one adds, another sees when it starts.
"""

import asyncio
import fcntl
import logging
import os
import re
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.nix.store_path import HashPart

_log = logging.getLogger(__name__)

FILE: Final = "upstream-narinfos"

MAX_BYTES: Final = 16 * 1024 * 1024
"""Of all narinfos; beyond, the least recently used are forgotten."""

MAX_NARINFO_BYTES: Final = 16 * 1024
"""A larger one is asked for each time."""

KEPT_SECONDS: Final = 30 * 24 * 3600.0
"""As long as Nix itself remembers one."""

_MAX_FILE_BYTES: Final = 3 * MAX_BYTES
_REWRITTEN_ABOVE_BYTES: Final = 2 * MAX_BYTES
_ENTRY_BYTES: Final = 512  # in memory, besides the narinfo
_SAVED_AFTER_SECONDS: Final = 1.0
_MODE: Final = 0o600
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_LINE: Final = re.compile(rb"([0-9a-f]{16}) ([0-9a-z]{32}) ([0-9]{1,12}) ([0-9]{1,5}) ([0-9a-f]{8})\n")

_Place = tuple[str, HashPart]


class _Entry(NamedTuple):
    since: float
    narinfo: bytes


class NarinfoStore:
    """Narinfos by upstream key and hash part; ``clock`` tells the time of day.

    Args:
        path: of the file; None for memory only.
    """

    def __init__(self, path: RootedPath | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._entries: OrderedDict[_Place, _Entry] = OrderedDict()
        self._bytes = 0
        self._unsaved: dict[_Place, _Entry] = {}
        self._is_damaged = False
        self._saving: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the file in a folder, which need not exist; blocks.

        If it cannot be used, narinfos are kept in memory only, and a warning is logged.
        """
        path = RootedPath(folder) / FILE
        store = cls(path)
        try:
            path.parent.make_folder()
            with suppress(FileNotFoundError):
                store._load(path)
        except OSError as error:
            store._give_up(error)
        return store

    def get(self, key: str, hash_part: HashPart) -> tuple[bytes, float] | None:
        """Return a narinfo as that upstream gave it, and its age in seconds."""
        place = key, hash_part
        entry = self._entries.get(place)
        if entry is None:
            return None
        age = self._clock() - entry.since
        if not 0 <= age < KEPT_SECONDS:
            self._drop(place)
            return None
        self._entries.move_to_end(place)
        return entry.narinfo, age

    def put(self, key: str, hash_part: HashPart, narinfo: bytes) -> None:
        """Keep what an upstream gave."""
        if len(narinfo) > MAX_NARINFO_BYTES:
            return
        entry = _Entry(self._clock(), narinfo)
        self._keep((key, hash_part), entry)
        self._save_later((key, hash_part), entry)

    def forget(self, key: str, hash_part: HashPart) -> None:
        """Drop one whose NAR is gone."""
        if (key, hash_part) in self._entries:
            self._drop((key, hash_part))
            self._save_later((key, hash_part), _Entry(self._clock(), b""))

    async def close(self) -> None:
        """Save what is not saved yet."""
        if self._saving is not None:
            self._saving.cancel()
        if self._task is not None:
            await self._task
        if self._unsaved:
            await self._save()

    def _keep(self, place: _Place, entry: _Entry) -> None:
        self._drop(place)
        self._entries[place] = entry
        self._bytes += len(entry.narinfo) + _ENTRY_BYTES
        while self._bytes > MAX_BYTES:
            self._drop(next(iter(self._entries)))

    def _drop(self, place: _Place) -> None:
        entry = self._entries.pop(place, None)
        if entry is not None:
            self._bytes -= len(entry.narinfo) + _ENTRY_BYTES

    def _save_later(self, place: _Place, entry: _Entry) -> None:
        if self._path is None:
            return
        self._unsaved[place] = entry
        if self._saving is None and self._task is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVED_AFTER_SECONDS, self._begin_to_save)

    def _begin_to_save(self) -> None:
        self._saving = None
        self._task = asyncio.create_task(self._save(), name="save narinfos")
        self._task.add_done_callback(self._end_saving)

    def _end_saving(self, _: object) -> None:
        self._task = None
        for place, entry in list(self._unsaved.items())[:1]:
            self._save_later(place, entry)

    async def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, {}
        path = self._path
        if path is None:
            return
        try:
            size = await asyncio.to_thread(_append, path, list(_records(unsaved)))
            if size > _REWRITTEN_ABOVE_BYTES or self._is_damaged:
                whole = list(_records(dict(self._entries)))
                await asyncio.to_thread(write_file, path, whole, path.parent, mode=_MODE)
                self._is_damaged = False
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._path = None
        fields = {"path": str(error.filename or FILE), "error": error.strerror or str(error)}
        _log.warning("narinfos of upstreams are not kept on disk", extra={"fields": fields})

    def _load(self, path: RootedPath) -> None:
        with os.fdopen(path.open(), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & _BY_OTHERS:
                raise OSError(None, "others may have written it; remove it", str(path))
            content = file.read(_MAX_FILE_BYTES + 1)
        end = 0
        for end, place, entry in _parse(content):  # noqa: B007  # the last one counts
            if entry.narinfo:
                self._keep(place, entry)
            else:
                self._drop(place)
        self._is_damaged = end != len(content)


def _records(entries: dict[_Place, _Entry]) -> Iterator[bytes]:
    for (key, hash_part), (since, narinfo) in entries.items():
        line = f"{key} {hash_part} {int(since)} {len(narinfo)} {zlib.crc32(narinfo):08x}\n"
        yield line.encode() + narinfo


def _parse(content: bytes) -> Iterator[tuple[int, _Place, _Entry]]:
    """Yield whole records, each with where it ends, until one is damaged."""
    start = 0
    while (line := _LINE.match(content, start)) is not None:
        length = int(line[4])
        narinfo = content[line.end() : line.end() + length]
        if len(narinfo) != length or zlib.crc32(narinfo) != int(line[5], 16):
            return
        start = line.end() + length
        yield start, (line[1].decode(), HashPart(line[2].decode())), _Entry(float(line[3]), narinfo)


def _append(path: RootedPath, records: list[bytes]) -> int:
    """Append to the file, and return its size; what a full disk takes no whole of is cut off again."""
    descriptor = path.open_or_create()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, _MODE)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        content = memoryview(b"".join(records))
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        return size + len(content)
    finally:
        os.close(descriptor)

"""Tables on disk: inflated, with the keys for look-ups beside them, both memory-mapped.

So a cache of any size costs hardly any memory of its own, and is ready as soon as its files are open.
The keys file is ours alone and can always be made again: 32 bytes that name it, then two numbers of 8 bytes
(the table's size, the count of keys), then the keys of 8 bytes, then the positions of 4.
"""

import hashlib
import mmap
import os
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from nixcache_oci.cache.record import Record
from nixcache_oci.cache.table import (
    KEY_BITS,
    MAX_TABLE_BYTES,
    HashLetters,
    Scan,
    TableHeader,
    find_letters,
    is_key_at,
    letters_at,
    parse_head,
    parse_header,
    parse_narinfos,
    row_key,
    scan,
    stanza_around,
)
from nixcache_oci.cache.table_inflation import TableInflater
from nixcache_oci.clients.durable_file import unfinished_path
from nixcache_oci.errors import DigestError, FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

_MAGIC: Final = f"nixcache-oci keys 1 {sys.byteorder}\n".encode().ljust(32, b"\0")
_SIZES: Final = struct.Struct("=QQ")
_KEYS_START: Final = len(_MAGIC) + _SIZES.size
# Where the rows of each thousandth of all keys start, so that few pages are touched to find one: most tables
# of a large cache do not have what is looked for. Takes 4 KiB, and a millisecond when a table is opened.
_BUCKETS: Final = 1024
_BUCKET_SHIFT: Final = KEY_BITS - _BUCKETS.bit_length() + 1


class TableFile:
    """One table, open for look-ups, and shared by all who hold it.

    Args:
        text: the table.
        keys: the keys file.

    Attributes:
        header: what the table says of itself.
        count: how many narinfos it lists.
        verdicts: one byte a row, for the holder to remember what validating that narinfo gave.

    Raises:
        FormatError: they are damaged, or do not belong together.
    """

    def __init__(self, text: mmap.mmap, keys: mmap.mmap) -> None:
        if keys[: len(_MAGIC)] != _MAGIC or len(keys) < _KEYS_START:
            raise FormatError("table: its keys file is none of this version")
        size, count = _SIZES.unpack_from(keys, len(_MAGIC))
        positions_start = _KEYS_START + 8 * count
        if size != len(text) or len(keys) != positions_start + 4 * count:
            raise FormatError("table: its keys file belongs to another table, or one of the two was cut")
        view = memoryview(keys)
        self._text = text
        self._keys = view[_KEYS_START:positions_start].cast("Q")
        self._positions = view[positions_start:].cast("I")
        if not all(is_key_at(text, self._keys[row], self._positions[row]) for row in {0, count - 1} if count):
            raise FormatError("table: its keys file belongs to another table")
        self.header: TableHeader = parse_header(text)
        starts = (bisect_left(self._keys, bucket << _BUCKET_SHIFT) for bucket in range(_BUCKETS + 1))
        self._starts = array("I", starts)
        self.count: int = count
        self.verdicts = bytearray(count)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the table that ``TableFileWriter`` put at this path.

        Raises:
            OSError: it is not there, or cannot be read.
            FormatError: it is damaged.
        """
        return cls(_map(path), _map(_keys_path(path)))

    def find(self, hash_part: HashPart) -> int | None:
        """Look one narinfo up; gives its row, or None."""
        letters = HashLetters(hash_part.encode())
        return self.find_letters(letters, row_key(letters))

    def find_letters(self, letters: HashLetters, key: int) -> int | None:
        """Look up as ``find`` does, for those who ask several tables: ``key`` comes from ``row_key``."""
        bucket = key >> _BUCKET_SHIFT
        start, end = self._starts[bucket], self._starts[bucket + 1]
        return find_letters(self._text, self._keys, self._positions, letters, key, start, end)

    def letters(self, row: int) -> HashLetters:
        """Give the hash part of a row, as it lies there: not validated."""
        return letters_at(self._text, self._positions[row])

    def text(self, row: int) -> bytes:
        """Cut one narinfo out, as it lies there: not validated."""
        return stanza_around(self._text, self._positions[row])

    def narinfos(self) -> Iterator[NarInfo]:
        """Read all narinfos strictly, in the order of their rows.

        Raises:
            FormatError: the table breaks the format, be it in a stanza that is served to nobody.
        """
        return parse_narinfos(self._text)

    @property
    def size(self) -> int:
        """Bytes of its text."""
        return len(self._text)

    def release(self) -> None:
        """Give memory back that reading all of it took; what is asked for later is read from disk."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._text.madvise(mmap.MADV_DONTNEED)

    def records(self) -> tuple[Record, ...]:
        """Read what publishes left.

        Raises:
            FormatError: a record is malformed.
        """
        return parse_head(self._text).records


class TableFileWriter:
    """Puts a table on disk while its blob comes in; every method blocks, and belongs on a thread.

    Nothing is visible at ``path`` before the whole of it is checked, and two who write the same table do not
    disturb each other. Whatever happens, ``close`` has to be called in the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished_text = unfinished_path(path.parent)
        self._unfinished_keys = unfinished_path(path.parent)
        self._digest = hashlib.sha256()
        self._file: _Limited | None = None
        self._inflater: TableInflater | None = None

    def write(self, compressed: bytes) -> None:
        """Take the next piece of the blob.

        Raises:
            OSError: it cannot be written.
            FormatError: not zstd, or over 64 MiB when inflated.
        """
        self._digest.update(compressed)
        if self._inflater is None:
            self._inflater = TableInflater(self._open(MAX_TABLE_BYTES))
        self._inflater.write(compressed)

    def write_text(self, text: bytes) -> None:
        """Take a whole table as text, one that was not compressed; no limit holds for it.

        Raises:
            OSError: it cannot be written.
        """
        self._digest.update(text)
        self._open(len(text)).write(text)

    def finish(self, digest: Digest) -> TableFile:
        """Check the whole, and put it in its place.

        Raises:
            OSError: it cannot be written.
            DigestError: the blob is not what its digest says.
            FormatError: it is no table.
        """
        actual = Digest(self._digest.hexdigest())
        if actual != digest:
            raise DigestError(f"table {digest}: the bytes received have digest {actual}")
        if self._file is None:
            raise FormatError("table: it is empty")
        self._file.sync()
        text = _map(self._unfinished_text)
        if text[-1:] != b"\n":
            raise FormatError("table: it does not end with a line break")
        self._write_keys(len(text), scan(text))
        # Opened before it gets its name: another process may remove that at once.
        table = TableFile(text, _map(self._unfinished_keys))
        self._unfinished_keys.replace(_keys_path(self._path))
        self._unfinished_text.replace(self._path)
        return table

    def close(self) -> None:
        """Remove what was not finished."""
        try:
            if self._file is not None:
                self._file.close()
        finally:
            self._unfinished_text.unlink(missing_ok=True)
            self._unfinished_keys.unlink(missing_ok=True)

    def _open(self, limit: int) -> "_Limited":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _Limited(self._unfinished_text, limit)
        return self._file

    def _write_keys(self, size: int, found: Scan) -> None:
        with self._unfinished_keys.open("xb") as file:
            file.write(_MAGIC + _SIZES.pack(size, len(found.keys)))
            found.keys.tofile(file)
            found.positions.tofile(file)
            file.flush()
            os.fsync(file.fileno())


class _Limited:
    """A new file that refuses to grow past a limit: a small blob can inflate to anything."""

    def __init__(self, path: Path, limit: int) -> None:
        self._file = path.open("xb")
        self._size = 0
        self._limit = limit

    def write(self, piece: bytes) -> int:
        self._size += len(piece)
        if self._size > self._limit:
            raise FormatError(f"table: over {self._limit} bytes when inflated")
        return self._file.write(piece)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def remove_table(path: Path) -> None:
    """Forget a table; whoever has it open keeps it."""
    path.unlink(missing_ok=True)
    _keys_path(path).unlink(missing_ok=True)


def _keys_path(path: Path) -> Path:
    return path.with_suffix(".keys")


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise FormatError(f"table: {path.name} is empty") from None

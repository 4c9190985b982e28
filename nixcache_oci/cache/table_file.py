"""Tables on disk: inflated, with a keys file for look-ups, both memory-mapped.

So a cache of any size takes little memory, and is ready once its files are open. The keys file is private and
can be rebuilt: 32 bytes of magic, two numbers of 8 bytes (the table's size, the count of keys), then the keys
of 8 bytes, then the positions of 4.
"""

import hashlib
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Self

from nixcache_oci.cache.mapped_file import map_file, release
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.spilling_file import Fallback, SpillingFile
from nixcache_oci.cache.table import TableHeader, parse_header, parse_narinfos, parse_records
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_inflation import LimitedText, TableInflater
from nixcache_oci.cache.table_search import (
    HashPartBytes,
    Named,
    Scan,
    find_hash_part,
    find_mentioning,
    find_named,
    hash_part_at,
    is_key_at,
    row_key,
    scan,
    stanza_around,
)
from nixcache_oci.clients.durable_file import unfinished_name, write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import DigestError, FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

_MAGIC: Final = f"nixcache-oci keys 1 {sys.byteorder}\n".encode().ljust(32, b"\0")
_SIZES: Final = struct.Struct("=QQ")
_KEYS_START: Final = len(_MAGIC) + _SIZES.size
# Public keys shown to people: per table, and characters of each.
_MAX_RECORDED_KEYS: Final = 8
_MAX_RECORDED_KEY_CHARACTERS: Final = 512
# Scanning maps a whole table into memory: one at a time.
_SCANNING: Final = threading.Lock()
_PIECE_BYTES: Final = 1024 * 1024
_PIECE_NUMBERS: Final = 64 * 1024


class TableFile:
    """One table, open for look-ups, and shared.

    Args:
        text: the table.
        keys: the keys file.

    Attributes:
        size: bytes of the table.
        count: number of narinfos.
        keys: the ``row_key`` of each row, ascending.
        recorded_keys: the first public keys of the header.
        verdicts: one byte per row, for the result of validating its narinfo.

    Raises:
        FormatError: damaged, or not of the same table.
    """

    __slots__ = ("_keys_file", "_positions", "_text", "count", "keys", "recorded_keys", "size", "verdicts")

    def __init__(self, text: memoryview, keys: memoryview) -> None:
        if keys[: len(_MAGIC)] != _MAGIC or len(keys) < _KEYS_START:
            raise FormatError("table: its keys file is not of this version")
        size, count = _SIZES.unpack_from(keys, len(_MAGIC))
        positions_start = _KEYS_START + 8 * count
        if size != len(text) or len(keys) != positions_start + 4 * count:
            raise FormatError("table: its keys file belongs to another table, or one of the two was cut")
        self._text = text
        self._keys_file = keys
        self.keys = keys[_KEYS_START:positions_start].cast("Q")
        self._positions = keys[positions_start:].cast("I")
        if not all(is_key_at(text, self.keys[row], self._positions[row]) for row in {0, count - 1} if count):
            raise FormatError("table: its keys file belongs to another table")
        named = parse_header(text).public_keys
        short = (key for key in named if len(key) <= _MAX_RECORDED_KEY_CHARACTERS)
        self.recorded_keys = tuple(islice(short, _MAX_RECORDED_KEYS))
        self.size = size
        self.count: int = count
        self.verdicts = bytearray(count)

    @classmethod
    def open(cls, path: RootedPath) -> Self:
        """Map the table that ``TableFileWriter`` put at this path.

        Raises:
            OSError: it cannot be read.
            FormatError: it is damaged.
        """
        return cls(_map(path), _map(_keys_path(path)))

    @property
    def header(self) -> TableHeader:
        """The header, parsed each time: thousands of tables may be open."""
        return parse_header(self._text)

    def find(self, hash_part: HashPart) -> int | None:
        """Return the row of a narinfo, or None."""
        wanted = HashPartBytes(hash_part.encode())
        return self.find_hash_part(wanted, row_key(wanted))

    def find_hash_part(self, hash_part: HashPartBytes, key: int) -> int | None:
        """Look up like ``find``, with the ``row_key``."""
        return find_hash_part(self._text, self.keys, self._positions, hash_part, key)

    def hash_part(self, row: int) -> HashPartBytes:
        """Return the hash part of a row, not validated."""
        return hash_part_at(self._text, self._positions[row])

    def text(self, row: int) -> bytes:
        """Return the narinfo of a row, not validated."""
        return stanza_around(self._text, self._positions[row])

    def named(self, words: Sequence[bytes], rows: range, before: Named | None = None) -> list[Named]:
        """Find rows by name, as ``find_named`` does."""
        return find_named(self._text, self._positions, words, rows, before)

    def mentioning(self, wanted: bytes) -> Iterator[int | None]:
        """Find rows by any text, as ``find_mentioning`` does."""
        return find_mentioning(self._text, self._positions, wanted)

    def save(self, path: RootedPath) -> None:
        """Write it to where ``open`` finds it.

        Raises:
            OSError: it cannot be written.
        """
        write_file(_keys_path(path), _pieces(self._keys_file), path.parent)
        write_file(path, _pieces(self._text), path.parent)

    def narinfos(self) -> Iterator[NarInfo]:
        """Parse all narinfos strictly, in row order.

        Raises:
            FormatError: malformed, even in a stanza that is never served.
        """
        return parse_narinfos(self._text)

    def release(self) -> None:
        """Release the memory that reading all of it took."""
        release(self._text)

    def records(self) -> tuple[Record, ...]:
        """Read the records.

        Raises:
            FormatError: a record is malformed.
        """
        return tuple(self.each_record())

    def each_record(self) -> Iterator[Record]:
        """Read the records one at a time, as the caller asks for them; raises as ``records``."""
        return parse_records(self._text)


class TableFileWriter:
    """Writes a table to disk while its blob arrives; every method blocks: call it on a thread.

    Nothing is visible at ``path`` before it is verified, and concurrent writers of the same table do not
    interfere. ``close`` must be called in the end.

    Args:
        path: of the table.
        budget: shared; every method raises LimitError once it is spent.
        fallback: if the disk is full; None to fail.
        remember: receives a table that is in the fallback.
    """

    def __init__(
        self,
        path: RootedPath,
        budget: TableBudget | None = None,
        fallback: Fallback | None = None,
        remember: Callable[[TableFile], None] = lambda _table: None,
    ) -> None:
        self._path = path
        self._budget = budget or TableBudget()
        self._fallback = fallback
        self._remember = remember
        self._unfinished_text = path.parent / unfinished_name()
        self._unfinished_keys = path.parent / unfinished_name()
        self._digest = hashlib.sha256()
        self._file: SpillingFile | None = None
        self._keys: SpillingFile | None = None
        self._text: LimitedText | None = None
        self._inflater: TableInflater | None = None

    def write(self, compressed: bytes) -> None:
        """Write the next piece of the blob.

        Raises:
            OSError: it cannot be written.
            FormatError: not zstd, over 64 MiB inflated, or inflated to over 64 times its size.
        """
        self._digest.update(compressed)
        if self._inflater is None:
            self._inflater = TableInflater(self._open(), self._budget)
        self._inflater.write(compressed)

    def write_text(self, text: bytes) -> None:
        """Write the next piece of uncompressed text.

        Raises:
            OSError: it cannot be written.
            FormatError: over 64 MiB.
        """
        self._digest.update(text)
        if self._text is None:
            self._text = self._open()
        self._text.write(text)

    def finish(self, digest: Digest | None) -> TableFile:
        """Verify the whole, and move it to its path.

        Args:
            digest: of all that was written; None for a table that was made here.

        Raises:
            OSError: it cannot be written.
            DigestError: the blob does not match its digest.
            FormatError: not a table.
        """
        actual = Digest(self._digest.hexdigest())
        if digest not in (None, actual):
            raise DigestError(f"table {digest}: the bytes received have digest {actual}")
        if self._file is None:
            raise FormatError("table: it is empty")
        text = self._file.map()
        if bytes(text[-1:]) != b"\n":
            raise FormatError("table: it does not end with a line break")
        with _SCANNING:
            found = scan(text)
            release(text)  # scanning made it resident
        self._budget.open(len(found.keys))
        # Opened before it gets its name, which another process may remove at once.
        table = TableFile(text, self._map_keys(len(text), found))
        if not (self._file.is_kept and self._keys is not None and self._keys.is_kept and self._keep()):
            self._remember(table)
        return table

    def close(self) -> None:
        """Remove what was not finished."""
        try:
            for file in (self._file, self._keys):
                if file is not None:
                    file.close()
        finally:
            for path in (self._unfinished_text, self._unfinished_keys):
                with suppress(OSError):  # ``remove_unfinished`` removes what is left
                    path.unlink()

    def _open(self) -> LimitedText:
        with suppress(OSError):  # creating the file reports it better
            self._path.parent.make_folder()
        self._file = SpillingFile(self._unfinished_text, self._fallback)
        return LimitedText(self._file, self._budget)

    def _map_keys(self, size: int, found: Scan) -> memoryview:
        self._keys = SpillingFile(self._unfinished_keys, self._fallback)
        self._keys.write(_MAGIC + _SIZES.pack(size, len(found.keys)))
        for numbers in (found.keys, found.positions):
            for start in range(0, len(numbers), _PIECE_NUMBERS):
                self._keys.write(numbers[start : start + _PIECE_NUMBERS].tobytes())
        return self._keys.map()

    def _keep(self) -> bool:
        try:
            self._unfinished_keys.replace(_keys_path(self._path))
            self._unfinished_text.replace(self._path)
        except OSError as error:
            if self._fallback is None:
                raise
            self._fallback.tell(error)
            return False
        return True


def remove_table(path: RootedPath) -> None:
    """Delete a table; it stays open where it is open."""
    path.unlink(missing_ok=True)
    _keys_path(path).unlink(missing_ok=True)


def _pieces(content: memoryview) -> Iterator[bytes]:
    return (bytes(content[start : start + _PIECE_BYTES]) for start in range(0, len(content), _PIECE_BYTES))


def _keys_path(path: RootedPath) -> RootedPath:
    return path.with_suffix(".keys")


def _map(path: RootedPath) -> memoryview:
    descriptor = path.open()
    try:
        return map_file(descriptor)
    finally:
        os.close(descriptor)

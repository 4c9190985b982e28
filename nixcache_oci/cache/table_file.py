"""Tables on disk: inflated, with the keys for look-ups beside them, both memory-mapped.

So a cache of any size costs hardly any memory of its own, and is ready as soon as its files are open.
The keys file is ours alone and can always be made again: 32 bytes that name it, then two numbers of 8 bytes
(the table's size, the count of keys), then the keys of 8 bytes, then the positions of 4.
"""

import hashlib
import mmap
import os
import secrets
import struct
import sys
from pathlib import Path
from typing import IO, Final, Self, cast

import zstandard

from nixcache_oci.cache.table import MAX_TABLE_BYTES, TableHeader, find_row, parse_head, scan, stanza_around
from nixcache_oci.errors import DigestError, FormatError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

_MAGIC: Final = f"nixcache-oci keys 1 {sys.byteorder}\n".encode().ljust(32, b"\0")
_SIZES: Final = struct.Struct("=QQ")
_KEYS_START: Final = len(_MAGIC) + _SIZES.size
# A frame may ask the reader for a window as large as its content; a table is never larger than this.
_MAX_WINDOW_BYTES: Final = MAX_TABLE_BYTES


class TableFile:
    """One table, open for look-ups, and shared by all who hold it.

    Attributes:
        header: what the table says of itself.
        count: how many narinfos it lists.
        verdicts: one byte a row, for the holder to remember what validating that narinfo gave.
    """

    def __init__(self, text: mmap.mmap, keys: mmap.mmap) -> None:
        magic, (size, count) = keys[: len(_MAGIC)], _SIZES.unpack_from(keys, len(_MAGIC))
        positions_start = _KEYS_START + 8 * count
        if magic != _MAGIC or size != len(text) or len(keys) != positions_start + 4 * count:
            raise FormatError("table: its keys file belongs to another table")
        view = memoryview(keys)
        self._text = text
        self._keys = view[_KEYS_START:positions_start].cast("Q")
        self._positions = view[positions_start:].cast("I")
        self.header: TableHeader = parse_head(text).header
        self.count: int = count
        self.verdicts = bytearray(count)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the table that ``TableFileWriter`` put at this path.

        Raises:
            OSError: it is not there, or cannot be read.
            FormatError: it is damaged.
        """
        try:
            return cls(_map(path), _map(_keys_path(path)))
        except (ValueError, struct.error) as error:  # mmap refuses an empty file so
            raise FormatError(f"table: {path.name}: {error}") from None

    def find(self, hash_part: HashPart) -> int | None:
        """Look one narinfo up; gives its row, or None."""
        return find_row(self._text, self._keys, self._positions, hash_part)

    def text(self, row: int) -> bytes:
        """Cut one narinfo out, as it lies there: not validated."""
        return stanza_around(self._text, self._positions[row])


class TableFileWriter:
    """Puts a table on disk while its blob comes in; every method blocks, and belongs on a thread.

    Nothing is visible at ``path`` before the whole of it is checked.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        self._digest = hashlib.sha256()
        self._file = _Limited(self._temporary)
        # All that the library asks of its target is write().
        target = cast("IO[bytes]", self._file)
        self._inflate = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_writer(
            target, closefd=False
        )

    def write(self, compressed: bytes) -> None:
        """Take the next piece of the blob.

        Raises:
            FormatError: not zstd, or over 64 MiB when inflated.
        """
        self._digest.update(compressed)
        try:
            self._inflate.write(compressed)
        except zstandard.ZstdError as error:
            raise FormatError(f"table: not zstd: {error}") from None

    def write_text(self, text: bytes) -> None:
        """Take a whole table as text, one that was not compressed."""
        self._digest.update(text)
        self._file.limit = max(len(text), MAX_TABLE_BYTES)
        self._file.write(text)

    def finish(self, digest: Digest) -> TableFile:
        """Check the whole, and put it in its place.

        Raises:
            DigestError: the blob is not what its digest says.
            FormatError: it is no table.
        """
        actual = Digest(self._digest.hexdigest())
        if actual != digest:
            raise DigestError(f"table {digest}: the bytes received have digest {actual}")
        self._file.close()
        with self._temporary.open("rb") as file:
            try:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise FormatError("table: it is empty") from None
            with text:
                if text[-1:] != b"\n":
                    raise FormatError("table: it does not end with a line break")
                parse_head(text)
                found = scan(text)
                size = len(text)
        content = b"".join(
            (
                _MAGIC,
                _SIZES.pack(size, len(found.keys)),
                found.keys.tobytes(),
                found.positions.tobytes(),
            )
        )
        write_file(_keys_path(self._path), content)
        self._temporary.replace(self._path)
        return TableFile.open(self._path)

    def close(self) -> None:
        """Remove what was not finished."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class _Limited:
    """A file that refuses to grow past a limit: a small blob can inflate to anything."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._size = 0
        self.limit = MAX_TABLE_BYTES

    def write(self, piece: bytes) -> int:
        self._size += len(piece)
        if self._size > self.limit:
            raise FormatError(f"table: over {self.limit} bytes when inflated")
        return self._file.write(piece)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def write_file(path: Path, content: bytes) -> None:
    """Write a small file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_table(path: Path) -> None:
    """Forget a table; whoever has it open keeps it."""
    path.unlink(missing_ok=True)
    _keys_path(path).unlink(missing_ok=True)


def _keys_path(path: Path) -> Path:
    return path.with_suffix(".keys")


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

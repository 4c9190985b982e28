"""Tables on disk: inflated, with the keys for look-ups beside them, both memory-mapped.

So a cache of any size costs hardly any memory of its own, and is ready as soon as its files are open.
The keys file is ours alone and can always be made again: 32 bytes that name it, then two numbers of 8 bytes
(the table's size, the count of keys), then the keys of 8 bytes, then the positions of 4.
"""

import hashlib
import mmap
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Self, cast

import zstandard

from nixcache_oci.cache.growing_file import Elsewhere, GrowingFile
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
    row_key,
    scan,
    stanza_around,
)
from nixcache_oci.clients.durable_file import unfinished_path, write_file
from nixcache_oci.errors import DigestError, FormatError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

_MAGIC: Final = f"nixcache-oci keys 1 {sys.byteorder}\n".encode().ljust(32, b"\0")
_SIZES: Final = struct.Struct("=QQ")
_KEYS_START: Final = len(_MAGIC) + _SIZES.size
# Where the rows of each thousandth of all keys start, so that few pages are touched to find one: most tables
# of a large cache do not have what is looked for. Takes 4 KiB, and a millisecond when a table is opened.
_BUCKETS: Final = 1024
_BUCKET_SHIFT: Final = KEY_BITS - _BUCKETS.bit_length() + 1
_PIECE_BYTES: Final = 1024 * 1024
# A frame may ask the reader for a window as large as its content; a table is never larger than this.
_MAX_WINDOW_BYTES: Final = MAX_TABLE_BYTES


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
        self._keys_file = keys
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

    def save(self, path: Path) -> None:
        """Put it where ``open`` finds it.

        Raises:
            OSError: it cannot be written.
        """
        write_file(_keys_path(path), _pieces(self._keys_file), path.parent)
        write_file(path, _pieces(self._text), path.parent)

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

    Args:
        path: where it goes.
        elsewhere: where it goes if that cannot be; None to fail.
        remember: is given a table that went elsewhere.
    """

    def __init__(
        self,
        path: Path,
        elsewhere: Elsewhere | None = None,
        remember: Callable[[TableFile], None] = lambda _table: None,
    ) -> None:
        self._path = path
        self._elsewhere = elsewhere
        self._remember = remember
        self._unfinished_text = unfinished_path(path.parent)
        self._unfinished_keys = unfinished_path(path.parent)
        self._digest = hashlib.sha256()
        self._file: GrowingFile | None = None
        self._keys: GrowingFile | None = None
        self._inflate: zstandard.ZstdDecompressionWriter | None = None

    def write(self, compressed: bytes) -> None:
        """Take the next piece of the blob.

        Raises:
            OSError: it cannot be written.
            FormatError: not zstd, or over 64 MiB when inflated.
        """
        self._digest.update(compressed)
        if self._inflate is None:
            # All that the library asks of its target is write().
            target = cast("IO[bytes]", self._open(MAX_TABLE_BYTES))
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
            self._inflate = decompressor.stream_writer(target, closefd=False)
        try:
            self._inflate.write(compressed)
        except zstandard.ZstdError as error:
            raise FormatError(f"table: not zstd: {error}") from None

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
        text = self._file.map()
        if text[-1:] != b"\n":
            raise FormatError("table: it does not end with a line break")
        keys = render_keys(len(text), scan(text))
        self._keys = GrowingFile(self._unfinished_keys, len(keys), self._elsewhere)
        self._keys.write(keys)
        # Opened before it gets its name: another process may remove that at once.
        table = TableFile(text, self._keys.map())
        if not (self._file.is_kept and self._keys.is_kept and self._keep()):
            self._remember(table)
        return table

    def close(self) -> None:
        """Remove what was not finished."""
        try:
            for file in (self._file, self._keys):
                if file is not None:
                    file.close()
        finally:
            _remove(self._unfinished_text, self._unfinished_keys)

    def _open(self, limit: int) -> GrowingFile:
        with suppress(OSError):  # the file itself says it better
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = GrowingFile(self._unfinished_text, limit, self._elsewhere)
        return self._file

    def _keep(self) -> bool:
        try:
            self._unfinished_keys.replace(_keys_path(self._path))
            self._unfinished_text.replace(self._path)
        except OSError as error:
            if self._elsewhere is None:
                raise
            self._elsewhere.tell(error)
            return False
        return True


def render_keys(size: int, found: Scan) -> bytes:
    """Render the keys file of a table of this size."""
    head = _MAGIC + _SIZES.pack(size, len(found.keys))
    return head + found.keys.tobytes() + found.positions.tobytes()


def _pieces(content: mmap.mmap) -> Iterator[bytes]:
    return (content[start : start + _PIECE_BYTES] for start in range(0, len(content), _PIECE_BYTES))


def remove_table(path: Path) -> None:
    """Forget a table, as far as it can be; whoever has it open keeps it."""
    _remove(path, _keys_path(path))


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # what cannot be removed is in nobody's way: it is never read unchecked
            path.unlink()


def _keys_path(path: Path) -> Path:
    return path.with_suffix(".keys")


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise FormatError(f"table: {path.name} is empty") from None

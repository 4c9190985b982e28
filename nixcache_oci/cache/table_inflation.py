"""Inflating tables: the one way for all who read them, so that gc counts exactly what a proxy serves.

A table's blob may be several zstd frames, one after another; each counts.
"""

from typing import IO, Final, Protocol, cast

import zstandard

from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, parse_table
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest

# A frame may ask the reader for a window as large as its content; a table is never larger than this.
_MAX_WINDOW_BYTES: Final = MAX_TABLE_BYTES


class Target(Protocol):
    """Takes the text of a table, and refuses what is over its limit with FormatError."""

    def write(self, piece: bytes, /) -> int:
        """Take the next piece."""


class TableInflater:
    """Inflates a table's blob while it comes in.

    Args:
        target: gets the text.
    """

    def __init__(self, target: Target) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        # All that the library asks of its target is write().
        self._writer = decompressor.stream_writer(cast("IO[bytes]", target), closefd=False)

    def write(self, compressed: bytes | bytearray) -> None:
        """Take the next piece of the blob.

        Raises:
            FormatError: not zstd, or what the target refuses.
        """
        try:
            self._writer.write(compressed)
        except zstandard.ZstdError as error:
            raise FormatError(f"table: not zstd: {error}") from None


def inflate_table(compressed: bytes | bytearray) -> bytes:
    """Inflate the whole blob of a table in memory.

    Raises:
        FormatError: not zstd, or over 64 MiB when inflated.
    """
    text = _Text()
    TableInflater(text).write(compressed)
    return bytes(text.content)


async def read_table(repository: Repository, table: Digest) -> Table:
    """Fetch the table of a segment, and parse all of it strictly.

    Raises:
        NotFoundError: it is not there.
        DigestError: it is not what its digest says.
        FormatError: it is no table.
        RegistryError: it could not be fetched.
    """
    compressed = await read_blob(repository, table, MAX_TABLE_BYTES)
    return await run_in_thread(lambda: parse_table(inflate_table(compressed)))


class _Text:
    """A text in memory that refuses to grow past the limit: a small blob can inflate to anything."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, piece: bytes) -> int:
        if len(self.content) + len(piece) > MAX_TABLE_BYTES:
            raise FormatError(f"table: over {MAX_TABLE_BYTES} bytes when inflated")
        self.content += piece
        return len(piece)

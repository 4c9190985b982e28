"""Inflating tables, with the same limits for all readers: gc counts exactly what a proxy serves.

A table's blob may be several concatenated zstd frames.
"""

from typing import IO, Final, Protocol, cast

import zstandard

from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, parse_table
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import TABLE_HEAD_SECONDS, read_blob
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest

# Memory per table in transit: what every zstd reader has to support (RFC 8878, section 3.1.1.1.2), and level
# 19 makes.
_MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
# Narinfos are mostly hashes, and compress to a fifth. A small blob that inflates to far more is a bomb.
_MAX_RATIO: Final = 64
_ANY_RATIO_BYTES: Final = 1024 * 1024


class Target(Protocol):
    """Receives the text of a table, piece by piece."""

    def write(self, piece: bytes, /) -> int:
        """Take the next piece."""


class LimitedText:
    """Forwards the text of a table up to a limit: a small blob can inflate to anything.

    Attributes:
        limit: bytes, at most 64 MiB.
    """

    def __init__(self, target: Target, budget: TableBudget) -> None:
        self._target = target
        self._size = 0
        self._budget = budget
        self.limit = MAX_TABLE_BYTES

    def write(self, piece: bytes) -> int:
        """Forward the next piece.

        Raises:
            FormatError: over the limit.
            LimitError: over the budget.
        """
        self._size += len(piece)
        if self._size > self.limit:
            raise FormatError(f"table: over {self.limit} bytes when inflated")
        self._budget.inflate(len(piece))
        return self._target.write(piece)


class TableInflater:
    """Inflates a table's blob into ``text`` while it arrives, and sets the limit there."""

    def __init__(self, text: LimitedText, budget: TableBudget) -> None:
        self._text = text
        self._budget = budget
        self._received = 0
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        # The library only calls write().
        self._writer = decompressor.stream_writer(cast("IO[bytes]", text), closefd=False)

    def write(self, compressed: bytes | bytearray) -> None:
        """Inflate the next piece of the blob.

        Raises:
            FormatError: not zstd, over 64 MiB inflated, or inflated to over 64 times its size.
            LimitError: over the budget.
        """
        self._budget.receive(len(compressed))
        self._received += len(compressed)
        self._text.limit = min(MAX_TABLE_BYTES, _ANY_RATIO_BYTES + _MAX_RATIO * self._received)
        try:
            self._writer.write(compressed)
        except zstandard.ZstdError as error:
            raise FormatError(f"table: not zstd: {error}") from None


def inflate_table(compressed: bytes | bytearray, budget: TableBudget | None = None) -> bytes:
    """Inflate the whole blob of a table in memory.

    Raises:
        FormatError: as ``TableInflater.write``.
        LimitError: over the budget.
    """
    budget = budget or TableBudget()
    content = _Memory()
    TableInflater(LimitedText(content, budget), budget).write(compressed)
    return bytes(content.text)


async def read_table(repository: Repository, table: Digest, budget: TableBudget | None = None) -> Table:
    """Fetch the table of a segment, and parse all of it strictly.

    Raises:
        LimitError: over the budget.
        NotFoundError: it is missing.
        DigestError: it does not match its digest.
        FormatError: it is not a table.
        RegistryError: it could not be fetched.
    """
    budget = budget or TableBudget()
    budget.check()
    compressed = await read_blob(repository, table, MAX_TABLE_BYTES, head_seconds=TABLE_HEAD_SECONDS)
    return await run_in_thread(lambda: parse_table(inflate_table(compressed, budget)))


class _Memory:
    def __init__(self) -> None:
        self.text = bytearray()

    def write(self, piece: bytes) -> int:
        self.text += piece
        return len(piece)

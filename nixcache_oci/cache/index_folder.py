"""The index folder: the last good index of one cache on disk, so that a start needs no network.

``index.json`` is the listing, ``tables/`` the tables that it names, and ``public-key`` the first recorded
key that was seen. Any number of processes may share it: files are named by content and swapped in whole.
"""

import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table, write_file
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

_TABLE_SUFFIX: Final = ".table"
_LEFT_BEHIND_SECONDS: Final = 24 * 3600


class IndexFolder:
    """Keeps one cache's index on disk. Every method blocks, and belongs on a thread.

    Args:
        root: folder for all caches of this user.
        repository: the cache's name, such as ``ghcr.io/owner/name/nix-cache``.

    Raises:
        UsageError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, repository: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", repository)[-80:].strip("_.")
        self.path = root / f"{readable}-{Digest.of(repository.encode()).hex[:12]}"
        self._tables = self.path / "tables"
        try:
            self._tables.mkdir(parents=True, exist_ok=True)
            write_file(self.path / "repository", f"{repository}\n".encode())
        except OSError as error:
            raise UsageError(
                f"index folder {self.path}: {error.strerror}; set NIXCACHE_INDEX_DIR to a writable one"
            ) from None

    def load(self) -> tuple[Listing, dict[Digest, TableFile]] | None:
        """Open what the last run saved; None where there is nothing whole."""
        try:
            listing = Listing.from_json((self.path / "index.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            _log.warning("saved index is unusable", extra={"fields": {"error": str(error)}})
            return None
        tables = {}
        for table in listing.tables:
            opened = self.open_table(table)
            if opened is not None:
                tables[table] = opened
        return listing, tables

    def save(self, listing: Listing) -> None:
        """Make this listing the one that the next start finds, and forget tables that it does not name."""
        write_file(self.path / "index.json", listing.to_json().encode())
        kept = {table.hex for table in listing.tables}
        for path in self._tables.glob(f"[!.]*{_TABLE_SUFFIX}"):
            if path.stem not in kept:
                remove_table(path)
        for path in self._tables.glob(".*"):
            # What a killed process left half written; a living one is done long before.
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                path.unlink(missing_ok=True)

    def open_table(self, table: Digest) -> TableFile | None:
        """Open a table that was written before; None where it is not there or is damaged."""
        path = self._table_path(table)
        try:
            return TableFile.open(path)
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            _log.warning(
                "saved table is unusable", extra={"fields": {"path": str(path), "error": str(error)}}
            )
            remove_table(path)
            return None

    def table_writer(self, table: Digest) -> TableFileWriter:
        """Start to write a table."""
        return TableFileWriter(self._table_path(table))

    def pin_key(self, recorded: Iterable[str]) -> str | None:
        """Give the key that this cache was first seen with, and remember it; no later one replaces it."""
        path = self.path / "public-key"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            first = next(iter(recorded), None)
            if first is not None:
                write_file(path, f"{first}\n".encode())
            return first

    def _table_path(self, table: Digest) -> Path:
        return self._tables / f"{table.hex}{_TABLE_SUFFIX}"

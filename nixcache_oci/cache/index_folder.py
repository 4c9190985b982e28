"""The index folder: the last good index of one cache on disk, so that a start needs no network.

``index.json`` is the listing, ``tables/`` the tables that it names, and ``public-key`` the first recorded
key that was seen. Any number of processes may share it: files are named by content and swapped in whole.
"""

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table
from nixcache_oci.clients.durable_file import remove_unfinished, unfinished_path, write_file
from nixcache_oci.errors import FormatError, LimitError, UsageError
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

_TABLE_SUFFIX: Final = ".table"
# A listing was read from an index of at most 4 MiB; written here, a letter may take three times as much.
_MAX_LISTING_BYTES: Final = 16 * 1024 * 1024
_MAX_KEY_BYTES: Final = 1024


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
        self._unusable_log_level = logging.WARNING
        try:
            self._tables.mkdir(parents=True, exist_ok=True)
            self._write("repository", f"{repository}\n")
        except OSError as error:
            raise UsageError(
                f"index folder {self.path}: {error.strerror}; set NIXCACHE_INDEX_DIR to a writable one"
            ) from None

    def load(self) -> tuple[Listing, dict[Digest, TableFile]] | None:
        """Open what the last run saved; None where there is none.

        A table that is gone or damaged is left out, and so is what is over the limits of a look.
        """
        listing = self._load_listing()
        if listing is None:
            return None
        budget = TableBudget()
        tables = {}
        for table in listing.tables_newest_first():
            opened = self.open_table(table)
            if opened is not None:
                try:
                    budget.inflate(opened.size)
                    budget.open(opened.count)
                except LimitError:
                    break
                tables[table] = opened
        return listing, tables

    def save(self, listing: Listing) -> None:
        """Make this listing the one that the next start finds, and forget tables that it does not name.

        Raises:
            OSError: it cannot be written.
        """
        self._write("index.json", listing.to_json())
        self._forget_others(listing.tables)

    def make_room(self, tables: Iterable[Digest]) -> None:
        """Forget what looks that failed have fetched: all tables but these, and those of the saved index.

        Raises:
            OSError: one cannot be removed.
        """
        kept = set(tables)
        names = {table.hex for table in kept}
        if any(path.stem not in names for path in self._tables.glob("[!.]*")):
            saved = self._load_listing()
            self._forget_others(kept.union(saved.tables if saved is not None else ()))

    def open_table(self, table: Digest) -> TableFile | None:
        """Open a table that was written before; None where it is not there or is damaged."""
        path = self._table_path(table)
        try:
            return TableFile.open(path)
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            fields = {"path": str(path), "error": str(error)}
            _log.log(self._unusable_log_level, "saved table is unusable", extra={"fields": fields})
            self._unusable_log_level = logging.DEBUG  # there may be thousands, with one cause
            remove_table(path)
            return None

    def table_writer(self, table: Digest, budget: TableBudget | None = None) -> TableFileWriter:
        """Start to write a table, which counts against the budget of all."""
        return TableFileWriter(self._table_path(table), budget)

    def pin_key(self, recorded: Iterable[str]) -> str | None:
        """Give the key that this cache was first seen with, and remember it; no later one replaces it.

        Raises:
            OSError: it cannot be read, or not be written.
        """
        path = self.path / "public-key"
        first = next(iter(recorded), None)
        if first is not None and not path.exists():
            candidate = unfinished_path(self.path)
            try:
                write_file(candidate, [f"{first}\n".encode()], self.path)
                with suppress(FileExistsError):  # another process was first
                    path.hardlink_to(candidate)
            finally:
                candidate.unlink(missing_ok=True)
        try:
            with path.open("rb") as file:
                return file.read(_MAX_KEY_BYTES).decode().strip()
        except FileNotFoundError:
            return None

    def _load_listing(self) -> Listing | None:
        try:
            with (self.path / "index.json").open("rb") as file:
                return Listing.from_json(file.read(_MAX_LISTING_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            _log.warning("saved index is unusable", extra={"fields": {"error": str(error)}})
            return None

    def _forget_others(self, tables: Iterable[Digest]) -> None:
        kept = {table.hex for table in tables}
        for path in self._tables.glob("[!.]*"):
            if path.stem not in kept:
                remove_table(path.with_suffix(_TABLE_SUFFIX))
        remove_unfinished(self._tables)
        remove_unfinished(self.path)

    def _write(self, name: str, text: str) -> None:
        write_file(self.path / name, [text.encode()], self.path)

    def _table_path(self, table: Digest) -> Path:
        return self._tables / f"{table.hex}{_TABLE_SUFFIX}"

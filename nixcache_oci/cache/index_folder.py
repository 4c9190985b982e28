"""The index folder: the last good index of one cache on disk, so that a start needs no network.

``index.json`` is the listing, ``tables/`` the tables that it names, and ``public-key`` the first recorded
key that was seen. Any number of processes may share it: files are named by content and swapped in whole.
It is trusted: whoever may write to it says what the cache lists. What is no file in it is refused all the
same, so that nothing waits for a pipe, or reads what a link leads to.
"""

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table
from nixcache_oci.clients.durable_file import remove_unfinished, unfinished_name, write_file
from nixcache_oci.clients.rooted_path import RootedPath, WrongKindError
from nixcache_oci.errors import FormatError, LimitError, UsageError
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

_TABLE_SUFFIX: Final = ".table"
# A listing was read from an index of at most 4 MiB; written here, a letter may take three times as much.
_MAX_LISTING_BYTES: Final = 16 * 1024 * 1024
_MAX_KEY_BYTES: Final = 4096
_MODE: Final = 0o700
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class IndexFolder:
    """Keeps one cache's index on disk. Every method blocks, and belongs on a thread.

    Args:
        root: folder for all caches of this user.
        repository: the cache's name, such as ``ghcr.io/owner/name/nix-cache``.

    Attributes:
        path: of this cache's folder.
        rooted: the same, to open files in it.

    Raises:
        UsageError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, repository: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", repository)[-80:].strip("_.")
        self.path = root / f"{readable}-{Digest.of(repository.encode()).hex[:12]}"
        self.rooted = RootedPath(root) / self.path.name
        self._tables = self.rooted / "tables"
        self._unusable_log_level = logging.WARNING
        try:
            self._warn_of_others(self.rooted.make_folder(_MODE))
            self._tables.make_folder(_MODE)
            self._write("repository", f"{repository}\n")
        except WrongKindError as error:
            raise UsageError(f"index folder: {error}") from None
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
            OSError: the folder cannot be listed.
        """
        kept = set(tables)
        names = {table.hex for table in kept}
        if any(stem not in names for stem in self._table_names()):
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
            self._remove_table(path)
            return None

    def table_writer(self, table: Digest, budget: TableBudget | None = None) -> TableFileWriter:
        """Start to write a table, which counts against the budget of all."""
        return TableFileWriter(self._table_path(table), budget)

    def pin_key(self, recorded: Iterable[str]) -> str | None:
        """Give the key that this cache was first seen with, and remember it; no later one replaces it.

        Raises:
            OSError: it cannot be read, or not be written.
        """
        path = self.rooted / "public-key"
        first = next(iter(recorded), None)
        if first is not None and path.stat() is None:
            candidate = self.rooted / unfinished_name()
            try:
                write_file(candidate, [f"{first}\n".encode()], self.rooted)
                with suppress(FileExistsError):  # another process was first
                    path.hardlink_to(candidate)
            finally:
                candidate.unlink(missing_ok=True)
        try:
            return self._read(path.name, _MAX_KEY_BYTES).decode().strip()
        except FileNotFoundError:
            return None

    def _load_listing(self) -> Listing | None:
        try:
            return Listing.from_json(self._read("index.json", _MAX_LISTING_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            _log.warning("saved index is unusable", extra={"fields": {"error": str(error)}})
            return None

    def _table_names(self) -> Iterator[str]:
        """List what tables are named by: the hex digits of their digests."""
        stems = (path.name.partition(".")[0] for path, _ in self._tables.entries())
        return (stem for stem in stems if stem)

    def _forget_others(self, tables: Iterable[Digest]) -> None:
        kept = {table.hex for table in tables}
        for stem in self._table_names():
            if stem not in kept:
                self._remove_table(self._tables / f"{stem}{_TABLE_SUFFIX}")
        remove_unfinished(self._tables)
        remove_unfinished(self.rooted)

    def _write(self, name: str, text: str) -> None:
        write_file(self.rooted / name, [text.encode()], self.rooted)

    def _read(self, name: str, limit: int) -> bytes:
        content = (self.rooted / name).read_bytes(limit)
        if len(content) > limit:
            raise FormatError(f"{self.rooted / name}: over {limit} bytes")
        return content

    def _remove_table(self, path: RootedPath) -> None:
        try:
            remove_table(path)
        except OSError as error:  # a folder, for instance; where it is in the way, writing a table will fail
            _log.warning("table not removed", extra={"fields": {"path": str(path), "error": str(error)}})

    def _warn_of_others(self, status: os.stat_result) -> None:
        """Say where others may write: they could tell what the cache lists, or cut a file that is mapped."""
        if status.st_mode & _WRITABLE_BY_OTHERS or status.st_uid not in (0, os.geteuid()):
            remedy = f"chmod 700 {self.path}, or set NIXCACHE_INDEX_DIR to a folder of your own"
            _log.warning("others may write to the index folder", extra={"fields": {"remedy": remedy}})

    def _table_path(self, table: Digest) -> RootedPath:
        return self._tables / f"{table.hex}{_TABLE_SUFFIX}"

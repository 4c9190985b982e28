"""The index folder: the last good index of one cache on disk, so that a start needs no network.

``index.json`` is the listing, ``tables/`` the tables that it names, and ``public-key`` the first recorded
key that was seen. Processes may share it: files are named by content and replaced atomically.

It is a cache: if it is full, read-only, or not a folder at all, tables are kept elsewhere until the program
ends, and one warning says so. It is trusted: its writers decide what the cache lists. Still, anything but a
regular file in it is refused, so that no pipe blocks and no link is followed.
"""

import logging
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.spilling_file import Fallback, is_shortage
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table
from nixcache_oci.clients.durable_file import remove_unfinished, unfinished_name, write_file
from nixcache_oci.clients.rooted_path import RootedPath, WrongKindError
from nixcache_oci.errors import FormatError, LimitError
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

NOWHERE: Final = Path(os.devnull) / "nowhere"
"""The root for a user without a folder: nothing can be below it."""

_TABLE_SUFFIX: Final = ".table"
# A listing comes from an index of at most 4 MiB; escaped, a character may take three times as much.
_MAX_LISTING_BYTES: Final = 16 * 1024 * 1024
_MAX_KEY_BYTES: Final = 4096
_MODE: Final = 0o700
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class IndexFolder:
    """Keeps one cache's index on disk. Every method blocks: call it on a thread.

    Args:
        root: folder for all caches of this user, or ``NOWHERE``.
        repository: the cache's name, such as ``ghcr.io/owner/name/nix-cache``.

    Attributes:
        path: of this cache's folder.
        rooted: the same, to open files in it.
        problem: one sentence: why the index is not kept on disk; None while it is.
    """

    def __init__(self, root: Path, repository: str) -> None:
        self.path = self.name_in(root, repository)
        self.rooted = RootedPath(root) / self.path.name
        self.problem: str | None = None
        self._is_nowhere = root == NOWHERE
        self._tables = self.rooted / "tables"
        self._fallback = Fallback(self.tell)
        self._unkept: dict[Digest, TableFile] = {}
        self._first_key: str | None = None
        self._unusable_log_level = logging.WARNING
        self._is_there = False
        self._has_leftovers = True
        try:
            self._warn_of_others(self.rooted.make_folder(_MODE))
            self._make_folders()
            self._write("repository", f"{repository}\n")
        except OSError as error:
            self.tell(error)

    @staticmethod
    def name_in(root: Path, repository: str) -> Path:
        """Return the folder of one cache, in a folder for all."""
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", repository)[-80:].strip("_.")
        return root / f"{readable}-{Digest.of(repository.encode()).hex[:12]}"

    def tell(self, error: OSError) -> None:
        """Warn once that the index is not kept on disk."""
        if self.problem is not None:
            return
        remedy = "set NIXCACHE_INDEX_DIR to a writable folder"
        if isinstance(error, WrongKindError):
            reason = f"{error}, or {remedy}"
        elif self._is_nowhere:
            reason = f"there is no home folder; {remedy}"
        elif is_shortage(error):
            reason = f"{self.path}: {error.strerror}; allow this process more (ulimit -n, MemoryMax)"
        else:
            reason = f"{self.path}: {error.strerror}; {remedy}"
        self.problem = f"the index is not kept on disk: {reason}"
        _log.warning(self.problem)

    def load(self, budget: TableBudget | None = None) -> tuple[Listing, dict[Digest, TableFile]] | None:
        """Open what the last run saved; None if nothing.

        Missing and damaged tables are left out, and what is over the table budget.
        """
        listing = self._load_listing() if self._is_there else None
        if listing is None:
            return None
        budget = budget or TableBudget()
        tables = {}
        for table in listing.tables_newest_first():
            try:
                opened = self.open_table(table)
            except OSError as error:
                self._log_unusable("saved table not opened", self._table_path(table), error)
                continue
            if opened is not None:
                try:
                    budget.inflate(opened.size)
                    budget.open(opened.count)
                except LimitError:
                    break
                tables[table] = opened
        return listing, tables

    def save(self, listing: Listing) -> bool:
        """Save this listing for the next start, and delete tables that it does not name.

        Tables that could not be written are tried again. Returns whether everything is on disk.
        """
        self._forget_unkept(listing.tables)
        try:
            self._make_folders()
            for digest, table in list(self._unkept.items()):
                table.save(self._table_path(digest))
                del self._unkept[digest]
            self._write("index.json", listing.to_json())
            self._remove_tables(self._table_names().difference(table.hex for table in listing.tables))
            remove_unfinished(self.rooted)
            self._has_leftovers = False
        except OSError as error:
            self.tell(error)
            return False
        if self.problem is not None:
            self.problem = None
            _log.info("the index is kept on disk again")
        return True

    def drop_unused_tables(self, tables: Iterable[Digest]) -> None:
        """Delete what failed refreshes left: all tables but these, and those of the saved index."""
        kept = set(tables)
        self._forget_unkept(kept)
        if not (self._is_there and self._has_leftovers):
            return
        try:
            others = self._table_names().difference(table.hex for table in kept)
            if others and (saved := self._load_listing()) is not None:
                others.difference_update(table.hex for table in saved.tables)
            self._remove_tables(others)
        except OSError as error:
            self.tell(error)

    def open_table(self, table: Digest) -> TableFile | None:
        """Open a table that was written before; None if it is missing or damaged.

        Raises:
            OSError: this process has too many open files, or no memory: the table may be fine.
        """
        if table in self._unkept or not self._is_there:
            return self._unkept.get(table)
        path = self._table_path(table)
        try:
            return TableFile.open(path)
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            if isinstance(error, OSError) and is_shortage(error):
                raise
            self._log_unusable("saved table is unusable", path, error)
            self._remove_table(path)
            return None

    def table_writer(self, table: Digest, budget: TableBudget | None = None) -> TableFileWriter:
        """Start writing a table, which counts against the budget."""
        self._has_leftovers = True  # until it is saved that the cache lists it
        remember = partial(self._unkept.__setitem__, table)
        return TableFileWriter(self._table_path(table), budget, self._fallback, remember)

    def pin_key(self, recorded: Iterable[str]) -> str | None:
        """Return the key that this cache was first seen with, and store it; no later one replaces it.

        If it cannot be written, it is kept while this program runs.

        Raises:
            OSError: it cannot be read, though its folder can.
            FormatError: it is too long.
        """
        path = self.rooted / "public-key"
        first = self._first_key or next(iter(recorded), None)
        try:
            self.rooted.make_folder(_MODE)
        except OSError as error:
            self.tell(error)
            self._first_key = first
            return first
        if first is not None and path.stat() is None:
            self._first_key = first
            try:
                self._write_key(path, first)
            except OSError as error:
                self.tell(error)
        try:
            return self._read(path.name, _MAX_KEY_BYTES).decode().strip()
        except FileNotFoundError:
            return self._first_key

    def _write_key(self, path: RootedPath, key: str) -> None:
        candidate = self.rooted / unfinished_name()
        try:
            write_file(candidate, [f"{key}\n".encode()], self.rooted)
            with suppress(FileExistsError):  # another process was first
                path.hardlink_to(candidate)
        finally:
            with suppress(OSError):
                candidate.unlink()

    def _make_folders(self) -> None:
        self._is_there = False
        self._tables.make_folder(_MODE)
        self._is_there = True

    def _load_listing(self) -> Listing | None:
        try:
            return Listing.from_json(self._read("index.json", _MAX_LISTING_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as error:
            _log.warning("saved index is unusable", extra={"fields": {"error": str(error)}})
            return None

    def _table_names(self) -> set[str]:
        """List the hex digests of tables, and remove what killed writers left."""
        return {name.partition(".")[0] for name in remove_unfinished(self._tables)} - {""}

    def _forget_unkept(self, tables: Iterable[Digest]) -> None:
        for digest in self._unkept.keys() - set(tables):
            del self._unkept[digest]

    def _remove_tables(self, names: Iterable[str]) -> None:
        for name in names:
            self._remove_table(self._tables / f"{name}{_TABLE_SUFFIX}")

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
        except OSError as error:  # such as a folder; if it is in the way, writing a table fails
            self._log_unusable("table not removed", path, error)

    def _log_unusable(self, message: str, path: RootedPath, error: Exception) -> None:
        _log.log(
            self._unusable_log_level, message, extra={"fields": {"path": str(path), "error": str(error)}}
        )
        self._unusable_log_level = logging.DEBUG  # there may be thousands with one cause

    def _warn_of_others(self, status: os.stat_result) -> None:
        """Warn if others may write: they could change what the cache lists, or truncate a mapped file."""
        if status.st_mode & _WRITABLE_BY_OTHERS or status.st_uid not in (0, os.geteuid()):
            remedy = f"chmod 700 {self.path}, or set NIXCACHE_INDEX_DIR to a folder of your own"
            _log.warning("others may write to the index folder", extra={"fields": {"remedy": remedy}})

    def _table_path(self, table: Digest) -> RootedPath:
        return self._tables / f"{table.hex}{_TABLE_SUFFIX}"

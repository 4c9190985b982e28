"""The index folder: the last good index of one cache on disk, so that a start needs no network.

``index.json`` is the listing, ``tables/`` the tables that it names, and ``public-key`` the first recorded
key that was seen. Any number of processes may share it: files are named by content and swapped in whole.

It is a convenience, and nothing stops where it cannot be had: full, read-only, or not a folder at all. What
is there is read, what cannot be written is kept elsewhere until this program ends, and one warning says so.
"""

import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from nixcache_oci.cache.growing_file import Elsewhere
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table
from nixcache_oci.clients.durable_file import remove_unfinished, unfinished_path, write_file
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)

NOWHERE: Final = Path(os.devnull) / "nowhere"
"""The root of who has no folder for it: nothing can be below it."""

_TABLE_SUFFIX: Final = ".table"


class IndexFolder:
    """Keeps one cache's index on disk. Every method blocks, and belongs on a thread.

    Args:
        root: folder for all caches of this user, or ``NOWHERE``.
        repository: the cache's name, such as ``ghcr.io/owner/name/nix-cache``.

    Attributes:
        path: the folder of this cache.
        trouble: in one sentence, why not all of it is kept; None while it is.
    """

    def __init__(self, root: Path, repository: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", repository)[-80:].strip("_.")
        self.path = root / f"{readable}-{Digest.of(repository.encode()).hex[:12]}"
        self.trouble: str | None = None
        self._is_nowhere = root == NOWHERE
        self._tables = self.path / "tables"
        self._elsewhere = Elsewhere(self.tell)
        self._unkept: dict[Digest, TableFile] = {}
        self._first_key: str | None = None
        try:
            self._tables.mkdir(parents=True, exist_ok=True)
            self._write("repository", f"{repository}\n")
        except OSError as error:
            self.tell(error)

    def tell(self, error: OSError) -> None:
        """Say once that not all of the index is kept on disk.

        Args:
            error: why.
        """
        if self.trouble is None:
            where = "there is no home folder" if self._is_nowhere else f"{self.path}: {error.strerror}"
            self.trouble = (
                f"the index is not kept on disk: {where}; set NIXCACHE_INDEX_DIR to a writable folder"
            )
            _log.warning(self.trouble)

    def load(self) -> tuple[Listing, dict[Digest, TableFile]] | None:
        """Open what the last run saved; None where there is none.

        A table that is gone or damaged is left out.
        """
        try:
            listing = Listing.from_json((self.path / "index.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
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

    def save(self, listing: Listing) -> bool:
        """Make this listing the one that the next start finds, and forget tables that it does not name.

        Tables that the disk did not take are tried again. Tells whether all of it is on the disk.
        """
        wanted = set(listing.tables)
        for digest in self._unkept.keys() - wanted:
            del self._unkept[digest]
        try:
            self._tables.mkdir(parents=True, exist_ok=True)
            for digest, table in list(self._unkept.items()):
                table.save(self._table_path(digest))
                del self._unkept[digest]
            self._write("index.json", listing.to_json())
            kept = {table.hex for table in wanted}
            for path in self._tables.glob("[!.]*"):
                if path.stem not in kept:
                    remove_table(path.with_suffix(_TABLE_SUFFIX))
            remove_unfinished(self._tables)
            remove_unfinished(self.path)
        except OSError as error:
            self.tell(error)
            return False
        if self.trouble is not None:
            self.trouble = None
            _log.info("the index is kept on disk again")
        return True

    def open_table(self, table: Digest) -> TableFile | None:
        """Open a table that was written before; None where it is not there or is damaged."""
        if table in self._unkept:
            return self._unkept[table]
        path = self._table_path(table)
        try:
            return TableFile.open(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, FormatError) as error:
            _log.warning(
                "saved table is unusable", extra={"fields": {"path": str(path), "error": str(error)}}
            )
            remove_table(path)
            return None

    def table_writer(self, table: Digest) -> TableFileWriter:
        """Start to write a table."""
        remember = partial(self._unkept.__setitem__, table)
        return TableFileWriter(self._table_path(table), self._elsewhere, remember)

    def pin_key(self, recorded: Iterable[str]) -> str | None:
        """Give the key that this cache was first seen with, and remember it; no later one replaces it.

        Where it cannot be written, it is remembered as long as this program runs.

        Raises:
            OSError: it cannot be read.
        """
        path = self.path / "public-key"
        first = self._first_key or next(iter(recorded), None)
        if first is not None and not path.exists():
            self._first_key = first
            try:
                self._write_key(path, first)
            except OSError as error:
                self.tell(error)
        try:
            return path.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return self._first_key

    def _write_key(self, path: Path, key: str) -> None:
        candidate = unfinished_path(self.path)
        try:
            write_file(candidate, [f"{key}\n".encode()], self.path)
            with suppress(FileExistsError):  # another process was first
                path.hardlink_to(candidate)
        finally:
            with suppress(OSError):
                candidate.unlink()

    def _write(self, name: str, text: str) -> None:
        write_file(self.path / name, [text.encode()], self.path)

    def _table_path(self, table: Digest) -> Path:
        return self._tables / f"{table.hex}{_TABLE_SUFFIX}"

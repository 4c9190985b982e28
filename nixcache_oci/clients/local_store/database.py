"""Nix's own database of a local store, read only: which paths became valid since a look before.

Ids grow, and are never used again, so a look costs what is new, however large the store is. A user who may
not write there can open the database only while its write-ahead log exists (nix issue 10300). So a connection
that was opened then is kept, which keeps the log as well; without a log, the file is read as one that does
not change, and again if it did. Source: schema 10 of Nix 2.8 to 2.34.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import StoreError

MOST_ROWS: Final = 10_000
"""Paths of one look."""

_USUAL_STATE_DIR: Final = "/nix/var/nix"
_TRIES: Final = 5
_BUSY_SECONDS: Final = 5.0
_LAST_ID: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'ValidPaths'"
_NEW_PATHS: Final = "SELECT id, path, sigs FROM ValidPaths WHERE id > ? ORDER BY id LIMIT ?"

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ValidPath:
    """A path that became valid."""

    id: int
    path: str
    key_names: tuple[str, ...]  # of the keys that signed it


def find_database(store: LocalStore) -> Path:
    """Return where the database of a store is; it need not exist."""
    if str(store.real_store_dir) != store.store_dir:  # a chroot store: see store.find_real_store_dir
        return store.real_store_dir.parent / "var/nix/db/db.sqlite"
    return Path(store.nix.environment.get("NIX_STATE_DIR") or _USUAL_STATE_DIR) / "db/db.sqlite"


class StoreDatabase:
    """The database; all calls block, and raise StoreError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode of what is open

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._kept is not None:
            self._kept.close()
        self._kept = self._file = None

    def last_id(self) -> int:
        """Return the id of the path that became valid last, whether or not it still is."""
        rows = self._select(_LAST_ID)
        return int(str(rows[0][0])) if rows else 0

    def find_new(self, after: int) -> list[ValidPath]:
        """Return paths with greater ids that are valid now, in order, at most ``MOST_ROWS``."""
        rows = self._select(_NEW_PATHS, after, MOST_ROWS)
        return [
            ValidPath(
                int(str(number)),
                str(path),
                tuple(sig.partition(":")[0] for sig in str(sigs or "").split()),
            )
            for number, path, sigs in rows
        ]

    def _select(self, query: str, *values: int) -> list[Row]:
        failure: sqlite3.Error | None = None
        for _ in range(_TRIES):
            try:
                before = self._look_at_files()
                with self._connected(has_log=before[1]) as connection:
                    rows: list[Row] = connection.execute(query, values).fetchall()
                # Without a log, whatever was written meanwhile may be read by half.
                if before[1] or self._look_at_files() == before:
                    return rows
            except sqlite3.Error as error:
                # The log may have gone since it was looked for.
                self.close()
                failure = error
            except OSError as error:
                self.close()
                raise StoreError(f"{self._path}: {error.strerror}") from None
        raise StoreError(f"{self._path}: {failure or 'it changes too fast to be read; try again later'}")

    @contextmanager
    def _connected(self, *, has_log: bool) -> Iterator[sqlite3.Connection]:
        if not has_log:
            self.close()
            with closing(self._open("immutable=1")) as connection:
                yield connection
            return
        status = self._path.stat()
        if self._kept is None or self._file != (status.st_dev, status.st_ino):
            self.close()
            self._kept = self._open("mode=ro")
            self._file = (status.st_dev, status.st_ino)
        yield self._kept

    def _open(self, mode: str) -> sqlite3.Connection:
        # Only one thread at a time uses it, and not always the same.
        return sqlite3.connect(
            f"file:{quote(str(self._path))}?{mode}", uri=True, timeout=_BUSY_SECONDS, check_same_thread=False
        )

    def _look_at_files(self) -> tuple[tuple[int, ...], bool]:
        """Return what changes with the database's file, and whether there is a write-ahead log."""
        status = self._path.stat()
        changing = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return changing, self._path.with_name(f"{self._path.name}-wal").exists()

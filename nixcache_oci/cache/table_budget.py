"""The budget of all tables of a cache: each is bounded, but a registry may list thousands."""

import resource
import sys
import threading
from typing import Final

from nixcache_oci.errors import LimitError

MAX_ALL_TABLES_BYTES: Final = 2 * 1024**3
"""Inflated, on disk: four million narinfos of 500 bytes. During a refresh, old and new tables exist."""
MAX_ENTRIES: Final = 4_000_000
"""Narinfos. Each takes a byte of memory, and 12 on disk for look-ups; the smallest has 50."""
FILES_PER_TABLE: Final = 2
_FILES_SHARE: Final = (7, 8)  # of the process limit: connections are files, too


class TableBudget:
    """Counts the tables of one refresh, damaged ones too; thread-safe.

    Args:
        most_bytes: of tables, both inflated and as sent.
        most_entries: narinfos.
        most_files: open files; None for most of the process limit.
    """

    def __init__(
        self,
        most_bytes: int = MAX_ALL_TABLES_BYTES,
        most_entries: int = MAX_ENTRIES,
        most_files: int | None = None,
    ) -> None:
        files = _most_files() if most_files is None else most_files
        self._most = {
            "bytes sent": most_bytes,
            "bytes": most_bytes,
            "entries": most_entries,
            "open files": files,
        }
        self._left = dict(self._most)
        self._lock = threading.Lock()

    def receive(self, count: int) -> None:
        """Count bytes as sent.

        Raises:
            LimitError: over the budget, as in the other methods.
        """
        self._take("bytes sent", count)

    def inflate(self, count: int) -> None:
        """Count inflated bytes."""
        self._take("bytes", count)

    def open(self, entries: int) -> None:
        """Count a table that stays open, and its narinfos."""
        self._take("entries", entries)
        self._take("open files", FILES_PER_TABLE)

    def check(self) -> None:
        """Raise LimitError if the budget is spent: a smaller but older table must not be read either."""
        for what in self._left:
            self._take(what, 0)

    def _take(self, what: str, count: int) -> None:
        with self._lock:
            self._left[what] -= count
            if self._left[what] < 0:
                raise LimitError(f"all tables together are over the limit of {self._most[what]} {what}")


def _most_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    part, whole = _FILES_SHARE
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft * part // whole

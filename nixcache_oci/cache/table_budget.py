"""The budget of all tables of a cache: each is bounded, but a registry may list thousands."""

import threading
from typing import Final

from nixcache_oci.errors import LimitError

MAX_ALL_TABLES_BYTES: Final = 2 * 1024**3
"""Inflated, on disk: four million narinfos of 500 bytes. During a refresh, old and new tables exist."""
MAX_ENTRIES: Final = 4_000_000
"""Narinfos. Each takes 10 bytes of memory, and 12 on disk for look-ups; the smallest has 50."""


class TableBudget:
    """Counts the tables of one refresh, damaged ones too; thread-safe.

    Args:
        most_bytes: of tables, both inflated and as sent.
        most_entries: narinfos.
    """

    def __init__(
        self,
        most_bytes: int = MAX_ALL_TABLES_BYTES,
        most_entries: int = MAX_ENTRIES,
    ) -> None:
        self._most = {"bytes sent": most_bytes, "bytes": most_bytes, "entries": most_entries}
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
        """Count the narinfos of a table that stays open."""
        self._take("entries", entries)

    def check(self) -> None:
        """Raise LimitError if the budget is spent: a smaller but older table must not be read either."""
        for what in self._left:
            self._take(what, 0)

    def _take(self, what: str, count: int) -> None:
        with self._lock:
            self._left[what] -= count
            if self._left[what] < 0:
                raise LimitError(f"all tables together are over the limit of {self._most[what]} {what}")

"""Watches for a registry that goes back, over all runs of the proxy: its file, log line and counter."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.regression import Seen

_log = logging.getLogger(__name__)

_FILE: Final = "seen.json"
_MAX_BYTES: Final = 1024 * 1024  # forty times what is written
_SAVED: Final = timedelta(hours=1)  # between two writes for nothing but the time


class RegressionWatch:
    """Remembers what was seen of one cache.

    Args:
        folder: where the cache's index lies; what was seen lies beside it.
        counters: of the proxy.
        clock: tells the time.

    Attributes:
        seen: until now.
    """

    def __init__(self, folder: RootedPath, counters: Counters, clock: Callable[[], datetime] = now) -> None:
        self.seen = Seen()
        self._folder = folder
        self._counters = counters
        self._clock = clock
        self._saved: Seen | None = None

    async def open(self) -> None:
        """Read what an earlier run saw, once."""
        if self._saved is None:
            self.seen = self._saved = await asyncio.to_thread(self._load)

    def confirm(self) -> None:
        """Note that the repository holds what it held."""
        self.seen = replace(self.seen, looked=self._clock())

    def compare(self, before: Iterable[Segment], listed: Iterable[Segment]) -> None:
        """Note what the repository lists now, and say once where that is less than it may be.

        Args:
            before: segments at the look before this one.
            listed: segments now.
        """
        former, self.seen = self.seen, self.seen.after_look(before, listed, self._clock())
        if self.seen.is_worse_than(former):
            self._counters.index_regressions += 1
            fields = {
                "missing_segments": len(self.seen.missing),
                "newest": format_time(self.seen.newest_now) if self.seen.newest_now else None,
                "newest_seen": format_time(self.seen.newest) if self.seen.newest else None,
            }
            _log.warning(
                "the registry shows an older state of the cache than before", extra={"fields": fields}
            )
        elif former.regressed_since is not None and self.seen.regressed_since is None:
            _log.info("the registry shows again what it had shown before")

    async def save(self) -> None:
        """Write what is new for the next run.

        Raises:
            OSError: it cannot be written.
        """
        if self._is_new():
            await asyncio.to_thread(
                write_file, self._folder / _FILE, [self.seen.to_json().encode()], self._folder
            )
            self._saved = self.seen

    def _is_new(self) -> bool:
        seen, saved = self.seen, self._saved or Seen()
        if seen.looked is None or saved.looked is None or seen.looked - saved.looked >= _SAVED:
            return True
        return replace(seen, looked=None, newest_now=None) != replace(saved, looked=None, newest_now=None)

    def _load(self) -> Seen:
        try:
            return Seen.from_json((self._folder / _FILE).read_bytes(_MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return Seen()
        except (OSError, FormatError) as error:
            _log.warning("what was seen before is unusable", extra={"fields": {"error": str(error)}})
            return Seen()

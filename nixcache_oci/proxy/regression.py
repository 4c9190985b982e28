"""Rollback detection: a registry that shows an older state of the cache than before, across runs.

A registry cannot forge signed narinfos, but it can withhold them, or show an old index. Two things reveal
that. gc marks a segment for the whole grace period before deleting it; one that disappears within a day of
being seen unmarked was not deleted by gc. And gc deletes the newest segment last, so its time never goes back
while anybody publishes.

Source: design section 2, "Index", and section 5, promises 1 and 3.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, Self

from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.timestamp import format_time, now, parse_time
from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters

_log = logging.getLogger(__name__)

# After a longer gap, the mark may have been missed, if gc runs with a short grace.
_WATCHING: Final = timedelta(days=1)
MAX_MISSING: Final = 256
"""Missing segments remembered, the first noticed: more say nothing new."""
# The default grace: after it, a missing segment may have been marked and deleted by gc.
_REMEMBERED: Final = timedelta(days=30)

_FILE: Final = "seen.json"
_MAX_BYTES: Final = 1024 * 1024  # forty times what is written
_SAVED: Final = timedelta(hours=1)  # between writes of the time alone


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a cache, across runs of the proxy."""

    looked: datetime | None = None  # when the repository last confirmed its state, or None
    newest: datetime | None = None  # time of the newest segment ever listed, or None
    newest_now: datetime | None = None  # time of the newest segment now, or None
    older_since: datetime | None = None  # since when that is older than one seen before, or None
    # Tags of segments that disappeared unmarked, and when; at most ``MAX_MISSING``.
    missing: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def regressed_since(self) -> datetime | None:
        """Since when an older state is shown, or None."""
        return min((*([self.older_since] if self.older_since else []), *self.missing.values()), default=None)

    def is_worse_than(self, former: Self) -> bool:
        """Check for a new regression."""
        is_older = self.older_since is not None and former.older_since is None
        return is_older or not self.missing.keys() <= former.missing.keys()

    def after_look(self, before: Iterable[Segment], listed: Iterable[Segment], at: datetime) -> "Seen":
        """Compare the segments listed now with those before."""
        before, listed = tuple(before), tuple(listed)
        present = {segment.manifest for segment in listed}
        gap = at - self.looked if self.looked is not None else None
        missing = {
            tag: since
            for tag, since in self.missing.items()
            if not _is_among(tag, present) and at - since < _REMEMBERED
        }
        if gap is not None and gap < _WATCHING:
            left = (one for one in before if one.condemned is None and one.manifest not in present)
            for one in left:
                if len(missing) >= MAX_MISSING:
                    break
                missing.setdefault(str(one.tag), at)
        newest_now = max((segment.created for segment in listed), default=None)
        newest = self.newest
        is_marked = any(one.created == newest and one.condemned is not None for one in before)
        if is_marked or (gap is not None and gap >= _REMEMBERED):
            newest = newest_now  # gc may have deleted it
        is_older = newest is not None and (newest_now is None or newest_now < newest)
        if not is_older:
            newest = newest_now
        return Seen(at, newest, newest_now, (self.older_since or at) if is_older else None, missing)

    def to_json(self) -> str:
        """Write it for the disk."""
        times = {"looked": self.looked, "newest": self.newest, "older_since": self.older_since}
        return json.dumps(
            {
                **{name: format_time(time) if time is not None else None for name, time in times.items()},
                "missing": {tag: format_time(since) for tag, since in self.missing.items()},
            }
        )

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read what ``to_json`` wrote, without ``newest_now``; FormatError if it is damaged."""
        try:
            match json.loads(content):
                case {"looked": looked, "newest": newest, "older_since": older, "missing": dict(missing)}:
                    return cls(_parse(looked), _parse(newest), None, _parse(older), _parse_missing(missing))
        except (FormatError, ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"what was seen of the cache: {error}") from None
        raise FormatError("what was seen of the cache: fields are missing")


def _is_among(tag: str, manifests: AbstractSet[Digest]) -> bool:
    parsed = SegmentTag.parse(tag)
    return parsed is not None and parsed.manifest in manifests


def _parse_missing(missing: Mapping[str, str]) -> dict[str, datetime]:
    times = [
        (SegmentTag.parse(tag), parse_time(since)) for tag, since in islice(missing.items(), MAX_MISSING)
    ]
    # Anything but a segment's tag would never be listed again.
    return {str(tag): since for tag, since in times if tag is not None}


def _parse(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


class RegressionWatch:
    """Remembers what was seen of one cache, in its index folder.

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
        """Load what earlier runs saw, once."""
        if self._saved is None:
            self.seen = self._saved = await asyncio.to_thread(self._load)

    def confirm(self) -> None:
        """Note that the repository is unchanged."""
        self.seen = replace(self.seen, looked=self._clock())

    def compare(self, before: Iterable[Segment], listed: Iterable[Segment]) -> None:
        """Note what the repository lists now, and warn once of a regression."""
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
        """Save changes for the next run; OSError if it cannot be written."""
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

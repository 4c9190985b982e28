"""Whether a registry shows an older state of the cache than it did, over all runs of the proxy.

Signed narinfos cannot be forged by a registry, but it can withhold them, or show an old index. Two things
give that away. A segment that gc takes out was marked for the whole grace before; one that is gone within a
day of being seen without a mark was not taken out by gc. And the newest segment is the last that gc has a
reason to take, so that the time of the newest never goes back while anybody publishes.

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

# Whoever did not look for longer may have missed the mark, where gc runs with a short grace.
_WATCHING: Final = timedelta(days=1)
MAX_MISSING: Final = 256
"""Segments that are remembered as missing, those first that were noticed first: more say nothing new."""
# The default grace: what is missing may have been marked meanwhile, as far as anybody here can tell.
_REMEMBERED: Final = timedelta(days=30)

_FILE: Final = "seen.json"
_MAX_BYTES: Final = 1024 * 1024  # forty times what is written
_SAVED: Final = timedelta(hours=1)  # between two writes for nothing but the time


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a cache, over all runs of the proxy.

    Attributes:
        looked: when the repository last confirmed what it holds, or None.
        newest: time of the newest segment that was ever listed, or None.
        newest_now: of those that are listed now, or None.
        older_since: since when the newest is older than one seen before; None while it is not.
        missing: tags of segments that left without a mark, and when that was noticed; at most 256.
    """

    looked: datetime | None = None
    newest: datetime | None = None
    newest_now: datetime | None = None
    older_since: datetime | None = None
    missing: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def regressed_since(self) -> datetime | None:
        """Since when an older state is shown; None while it is not."""
        return min((*([self.older_since] if self.older_since else []), *self.missing.values()), default=None)

    def is_worse_than(self, former: Self) -> bool:
        """Tell whether something went back that had not before."""
        is_older = self.older_since is not None and former.older_since is None
        return is_older or not self.missing.keys() <= former.missing.keys()

    def after_look(self, before: Iterable[Segment], listed: Iterable[Segment], at: datetime) -> "Seen":
        """Compare what is listed now with what was.

        Args:
            before: segments at the look before this one.
            listed: segments now.
            at: the present.
        """
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
            newest = newest_now  # gc may well have taken it
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
        """Read what ``to_json`` wrote; what is listed now, the next look tells.

        Raises:
            FormatError: it is damaged.
        """
        try:
            match json.loads(content):
                case {"looked": looked, "newest": newest, "older_since": older, "missing": dict(missing)}:
                    return cls(
                        _parse(looked),
                        _parse(newest),
                        None,
                        _parse(older),
                        _parse_missing(missing),
                    )
        except (FormatError, ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"what was seen of the cache: {error}") from None
        raise FormatError("what was seen of the cache: fields are missing")


def _is_among(tag: str, manifests: AbstractSet[Digest]) -> bool:
    parsed = SegmentTag.parse(tag)
    return parsed is not None and parsed.manifest in manifests


def _parse_missing(missing: Mapping[str, str]) -> dict[str, datetime]:
    times = {tag: parse_time(since) for tag, since in islice(missing.items(), MAX_MISSING)}
    # What is no tag of a segment will never be listed again.
    return {tag: since for tag, since in times.items() if SegmentTag.parse(tag) is not None}


def _parse(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


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

"""Tells from the tags and the index alone that a gc would do nothing.

What gc decides follows from the segments, which never change, from the index that lists them, from its
options, and from its comparisons with the time. So a run that leaves nothing to do notes in the index a hash
of what it read, and until when those comparisons come out the same. A later run that finds the same hash
before that has nothing to do either. Every publish, pin, merge and lost index changes the hash, and then
everything is read. Source: design section 5, promise 8.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Self

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.listing import found_or_none
from nixcache_oci.cache.segment import SegmentTag
from nixcache_oci.cache.timestamp import EPOCH, format_time, parse_time
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.maintenance.gc.state import GcState
from nixcache_oci.maintenance.gc.state_reader import list_segment_tags
from nixcache_oci.oci import media_type

# gc runs daily: a shorter rest saves no run from reading everything.
_SHORTEST_REST: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class IdleNote:
    """What a run that left nothing to do wrote into the index."""

    found: str  # hash of tags, index and options
    since: datetime  # the start of that run
    until: datetime  # nothing is to be done before, unless somebody writes

    def __str__(self) -> str:
        return f"{self.found} from {format_time(self.since)} until {format_time(self.until)}"

    @classmethod
    def of(cls, index: CacheIndex) -> Self | None:
        """Read the note of an index; None if it has none, or a malformed one: then everything is read."""
        match index.image_index.annotations.get(media_type.ANNOTATION_IDLE, "").split(" "):
            case [found, "from", since, "until", until]:
                try:
                    return cls(found, parse_time(since), parse_time(until))
                except FormatError:
                    return None
        return None

    def holds(self, found: str, now: datetime, grace: timedelta) -> bool:
        """Tell whether there is nothing to do: never before the note was made, nor after the grace."""
        return self.found == found and self.since <= now < self.until and now - self.since < grace


async def find_idle_note(repository: Repository, options: GcOptions, now: datetime) -> IdleNote | None:
    """Look for a note that holds, in tags and index alone; None if everything has to be read.

    RegistryError if the repository could not answer.
    """
    tags = await list_segment_tags(repository)
    stored = await found_or_none(repository.get_manifest(INDEX_TAG))
    if stored is None:
        return None
    try:
        index = await asyncio.to_thread(CacheIndex.parse, stored.content)
    except FormatError:
        return None  # reading everything tells what is wrong
    note = IdleNote.of(index)
    if note is not None and note.holds(hash_found(tags, index, options), now, options.grace):
        return note
    return None


@dataclass(frozen=True, slots=True)
class Rest:
    """What to note after a run that left nothing to do."""

    found: str  # hash of tags, index and options
    since: datetime  # the start of that run
    duration: timedelta  # how long time alone changes nothing
    grace: timedelta

    def noted_in(self, index: CacheIndex) -> CacheIndex:
        """Add the note to the index that is about to be replaced; if it has no room, it stays as it is."""
        # The write makes a former version of that index, which is swept a grace after it was written. If
        # another writer came between, the hash no longer fits, and nothing is skipped.
        written = min(_written_after(index), self.since)
        note = IdleNote(self.found, self.since, min(self.since + self.duration, written + self.grace))
        annotations = {**index.image_index.annotations, media_type.ANNOTATION_IDLE: str(note)}
        noted = replace(index, image_index=replace(index.image_index, annotations=annotations))
        try:
            noted.render()
        except FormatError:
            return index
        return noted


def find_rest(state: GcState, options: GcOptions, unchanged: timedelta) -> Rest | None:
    """Decide what to note about a state in which nothing is left to do.

    None if a note says so already, it would not last, or something is damaged. ``unchanged`` is how long time
    alone changes nothing.
    """
    found = hash_found(state.tags, state.index, options)
    duration = min(unchanged, options.grace)
    written = IdleNote.of(state.index)
    is_noted = written is not None and written.holds(found, state.started, options.grace)
    is_damaged = any(one.table is None for one in state.segments)
    if is_noted or is_damaged or duration <= _SHORTEST_REST:
        return None
    return Rest(found, state.started, duration, options.grace)


def hash_found(tags: Iterable[SegmentTag], index: CacheIndex, options: GcOptions) -> str:
    """Hash all that decides what gc does, except the time."""
    descriptors = (one.descriptor.to_json() for one in index.segments)
    found = {
        "options": repr(options),
        "watermark": format_time(index.watermark),
        "segments": sorted(json.dumps(descriptor, sort_keys=True) for descriptor in descriptors),
        "tags": sorted(map(str, tags)),
    }
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _written_after(index: CacheIndex) -> datetime:
    """Return the newest time that an index names: it was not written before."""
    note = IdleNote.of(index)
    times = [EPOCH, *([note.since] if note is not None else [])]
    for segment in index.segments:
        times += [segment.created, *([segment.condemned] if segment.condemned is not None else [])]
    return max(times)

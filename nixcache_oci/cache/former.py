"""What a cache names no more, and since when: former versions of its index, and segments that left it.

Hardly any registry tells which manifests have no tag, and several delete none that an index lists, be that a
former version of ours. So the index remembers what it replaced, until gc has deleted it. Source: design
section 2, "Index".
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.timestamp import format_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest

MAX_FORMER: Final = 2000
"""That an index remembers; the oldest are forgotten first."""

_ENTRY: Final = r"[0-9a-f]{64} \S{20}"
_FORMER: Final = re.compile(rf"{_ENTRY}(?: {_ENTRY})*")


def read_former(index: CacheIndex) -> dict[Digest, datetime]:
    """Read what an index remembers, oldest first; nothing if it is malformed, for then gc only keeps more."""
    text = index.image_index.annotations.get(media_type.ANNOTATION_FORMER, "")
    if not _FORMER.fullmatch(text):
        return {}
    words = text.split(" ")
    try:
        found = [(parse_time(time), Digest(name)) for name, time in zip(words[::2], words[1::2], strict=True)]
    except FormatError:
        return {}
    return {digest: time for time, digest in sorted(found)[-MAX_FORMER:]}


def remembering(index: CacheIndex, left: Iterable[Digest], time: datetime) -> CacheIndex:
    """Remember manifests that the cache names no more since this time, or an earlier one that is known."""
    listed = {segment.manifest for segment in index.segments}
    former = dict.fromkeys(left, time) | read_former(index)
    # What is said to leave in the future would never be old enough.
    return _with(
        index, {digest: min(since, time) for digest, since in former.items() if digest not in listed}
    )


def forgetting(index: CacheIndex, gone: Collection[Digest]) -> CacheIndex:
    """Forget manifests that the repository has no more."""
    former = read_former(index)
    if former.keys().isdisjoint(gone):
        return index
    return _with(index, {digest: since for digest, since in former.items() if digest not in gone})


def _with(index: CacheIndex, former: Mapping[Digest, datetime]) -> CacheIndex:
    """Write the newest of these into an index, as many as it has room for."""
    entries = sorted((format_time(since), digest.hex) for digest, since in former.items())[-MAX_FORMER:]
    while True:
        annotations = dict(index.image_index.annotations)
        annotations.pop(media_type.ANNOTATION_FORMER, None)
        if entries:
            text = " ".join(f"{name} {since}" for since, name in entries)
            annotations[media_type.ANNOTATION_FORMER] = text
        made = replace(index, image_index=replace(index.image_index, annotations=annotations))
        try:
            made.render()
        except FormatError:
            if entries:
                entries = entries[len(entries) // 2 + 1 :]
                continue
        return made

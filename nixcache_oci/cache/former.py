"""What a cache names no more, and since when: former versions of its index, and segments that left it.

Hardly any registry tells which manifests have no tag, and several delete none that an index lists, be that a
former version of ours. So the index remembers what it replaced, until gc has deleted it; and at the latter,
each version gets a tag of its own first, for what a writer overwrites unnoticed. Source: design section 2,
"Index".
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.timestamp import format_tag_time, format_time, parse_tag_time, parse_time
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest

MAX_FORMER: Final = 2000
"""That an index remembers; the oldest are forgotten first."""

_ENTRY: Final = r"[0-9a-f]{64} \S{20}"
_FORMER: Final = re.compile(rf"{_ENTRY}(?: {_ENTRY})*")
_VERSION: Final = re.compile(rf"{INDEX_TAG}-(\S{{16}})-([0-9a-f]{{64}})")
_KEEPS: Final = "yes"


@dataclass(frozen=True, slots=True)
class VersionTag:
    """A tag by which gc finds one version of the index."""

    written: datetime  # to the second
    manifest: Digest

    def __str__(self) -> str:
        return f"{INDEX_TAG}-{format_tag_time(self.written)}-{self.manifest.hex}"

    @classmethod
    def parse(cls, tag: str) -> Self | None:
        """Parse a tag; None if it is not a version's."""
        match = _VERSION.fullmatch(tag)
        if match is None:
            return None
        try:
            return cls(parse_tag_time(match[1]), Digest(match[2]))
        except FormatError:
            return None


def tags_versions(repository: Repository, index: CacheIndex) -> bool:
    """Tell whether each version of the index gets a tag of its own first."""
    if repository.can_list_untagged:
        return False
    has_learned = index.image_index.annotations.get(media_type.ANNOTATION_KEEPS_LISTED) == _KEEPS
    return has_learned or repository.keeps_listed


def noting_keeps_listed(index: CacheIndex) -> CacheIndex:
    """Note that the registry deletes nothing that an index lists."""
    annotations = {**index.image_index.annotations, media_type.ANNOTATION_KEEPS_LISTED: _KEEPS}
    return replace(index, image_index=replace(index.image_index, annotations=annotations))


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


def with_notes_of(index: CacheIndex, other: CacheIndex) -> CacheIndex:
    """Take over what another index, of the repository that this one goes to, notes about that."""
    of_registry = (media_type.ANNOTATION_FORMER, media_type.ANNOTATION_KEEPS_LISTED)
    annotations = {
        **{key: value for key, value in index.image_index.annotations.items() if key not in of_registry},
        **{key: value for key, value in other.image_index.annotations.items() if key in of_registry},
    }
    return replace(index, image_index=replace(index.image_index, annotations=annotations))


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

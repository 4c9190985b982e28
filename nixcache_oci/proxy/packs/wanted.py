"""What is to be prefetched: NARs, and ranges of packs that cover the NARs whose narinfos were served.

A closure may need much of a pack, or a little of each of a hundred. So parts of packs are collected until
their turn comes, and then fetched in few ranges. Pure.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.oci.digest import Digest

Extent = tuple[int, int]
"""Offsets in bytes of the first byte, and after the last."""

MAX_GAP_BYTES: Final = 1024 * 1024
"""A smaller gap between parts is fetched with them: at 200 Mbit/s, it takes no longer than a round trip."""

MAX_RANGE_BYTES: Final = 4 * 1024 * 1024
"""More is fetched in several ranges, at the same time."""

_MAX_BATCHES: Final = 3
"""A pack that is wanted in more batches is fetched whole: a client wants its NARs one after another."""


# Whether a pack is dense is looked at after so many more parts.
_CHECKED_PARTS: Final = 8
_DENSE_PARTS: Final = 4  # of a range, on average


@dataclass(slots=True)
class Wanted:
    """What is wanted of a blob.

    Attributes:
        blob: a pack, or a small NAR.
        size_bytes: of the NAR, as a narinfo says; None for a pack.
        since: when the first narinfo was served, in seconds of a clock.
        batch: number of this batch of a pack's parts; the next one begins when a NAR of it was read.
        parts: of the pack, in the order of narinfos.
        is_dense: whether ranges have many of them, and so will have most of those that are still unknown.
    """

    blob: Digest
    size_bytes: int | None
    since: float
    batch: int = 0
    parts: dict[Extent, None] = field(default_factory=dict)
    is_dense: bool = False

    @property
    def is_pack(self) -> bool:
        """Whether it is a pack."""
        return self.size_bytes is None

    @property
    def is_whole(self) -> bool:
        """Whether the whole blob is to be fetched."""
        return not self.is_pack or self.batch > _MAX_BATCHES

    def __len__(self) -> int:
        """Count what a client will ask for."""
        return len(self.parts) if self.is_pack else 1

    def range_of(self, part: Extent) -> Extent:
        """Return the range that has this part of the pack, too."""
        return next(one for one in ranges_of([*self.parts, part]) if one[0] <= part[0] and part[1] <= one[1])


def ranges_of(parts: Iterable[Extent]) -> list[Extent]:
    """Cover parts of a pack with few ranges; each lies in one of them."""
    ranges: list[Extent] = []
    for start, end in sorted(parts):
        if ranges:
            first, behind = ranges[-1]
            joined = max(end, behind)
            if start - behind <= MAX_GAP_BYTES and joined - first <= MAX_RANGE_BYTES:
                ranges[-1] = first, joined
                continue
        ranges.append((start, end))
    return ranges


def _are_dense(parts: Collection[Extent]) -> bool:
    ranges = ranges_of(parts)
    size = sum(end - start for start, end in ranges)
    return size >= MAX_GAP_BYTES and len(parts) >= _DENSE_PARTS * len(ranges)


class WantedList:
    """What is wanted and not yet fetched, in the order of narinfos."""

    def __init__(self) -> None:
        self._of_blob: dict[Digest, Wanted] = {}
        self._count = 0

    def __len__(self) -> int:
        """Count what clients will ask for."""
        return self._count

    def __iter__(self) -> Iterator[Wanted]:
        """Give all of them as they are now."""
        return iter(list(self._of_blob.values()))

    def get(self, blob: Digest) -> Wanted | None:
        """Return what is wanted of a blob."""
        return self._of_blob.get(blob)

    def add(self, wanted: Wanted) -> None:
        """Add what is wanted of another blob."""
        self._of_blob[wanted.blob] = wanted
        self._count += len(wanted)

    def add_part(self, wanted: Wanted, part: Extent) -> None:
        """Add a part of a pack."""
        if part not in wanted.parts:
            wanted.parts[part] = None
            self._count += 1
            if len(wanted.parts) % _CHECKED_PARTS == 0:
                wanted.is_dense = _are_dense(wanted.parts)

    def drop_parts(self, wanted: Wanted, covered: Extent) -> None:
        """Drop the parts that a range has, and the pack with the last one."""
        start, end = covered
        for part in [one for one in wanted.parts if start <= one[0] and one[1] <= end]:
            del wanted.parts[part]
            self._count -= 1
        if not wanted.parts:
            self.drop(wanted.blob)

    def drop(self, blob: Digest) -> None:
        """Drop all that is wanted of a blob, if anything is."""
        if (wanted := self._of_blob.pop(blob, None)) is not None:
            self._count -= len(wanted)

    def drop_older(self, oldest: float) -> None:
        """Drop what is wanted since before this time."""
        for wanted in self:
            if wanted.since < oldest:
                self.drop(wanted.blob)

    def clear(self) -> None:
        """Drop everything."""
        self._of_blob.clear()
        self._count = 0

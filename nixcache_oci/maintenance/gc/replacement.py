"""What to keep of segments that are rewritten or merged.

Source: design section 5, promise 5.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from nixcache_oci.cache.record import Record, record_fields
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.gc.state import GcState, StoredSegment
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_signed_by


@dataclass(frozen=True, eq=False)
class Replacement:
    """One or more segments, and what is live in them.

    Attributes:
        sources: the segments that are replaced, the oldest first.
        records: to keep, each once.
        live: what counting roots reach, one byte per path.
        public_keys: whose signatures decide between variants.
    """

    sources: tuple[StoredSegment, ...]
    records: tuple[Record, ...]
    live: bytearray
    public_keys: tuple[PublicKey, ...]

    @property
    def narinfos(self) -> tuple[NarInfo, ...]:
        """What is live in them, each path once; parsed again each time, because it takes much memory.

        Raises:
            FormatError: a table can no longer be read.
        """
        variants: defaultdict[int, list[NarInfo]] = defaultdict(list)
        for source in reversed(self.sources):
            narinfos = source.table.narinfos() if source.table is not None else ()
            for path, narinfo in zip(source.paths, narinfos, strict=True):
                if self.live[path]:
                    variants[path].append(narinfo)
        return tuple(_choose(found, self.public_keys) for found in variants.values())


def replace_segments(
    state: GcState, live: bytearray, needed: AbstractSet[Record], public_keys: Sequence[PublicKey]
) -> Callable[[Iterable[StoredSegment]], Replacement]:
    """Return a function that makes the replacement of segments.

    Args:
        state: of the cache.
        live: what counting roots reach, one byte per path.
        needed: records to keep.
        public_keys: whose signatures decide between variants; empty for those that the tables record.
    """
    keys = tuple(public_keys) or _recorded_keys(state)

    def replace(sources: Iterable[StoredSegment]) -> Replacement:
        in_order = tuple(sorted(sources, key=lambda one: (one.segment.created, one.manifest)))
        records = {record for source in in_order for record in source.records if record in needed}
        return Replacement(in_order, tuple(sorted(records, key=record_fields)), live, keys)

    return replace


def _choose(newest_first: Sequence[NarInfo], keys: Sequence[PublicKey]) -> NarInfo:
    """Choose as readers do: signed by a key, the smallest NarHash, signed by anybody, the newest."""
    if len(newest_first) == 1:
        return newest_first[0]
    return min(
        newest_first,
        key=lambda one: (
            not (is_signed_by(one, keys) or is_content_addressed(one)),
            str(one.nar_hash),
            not one.sigs,
        ),
    )


def _recorded_keys(state: GcState) -> tuple[PublicKey, ...]:
    keys = {}
    for one in state.segments:
        for text in one.table.header.public_keys if one.table is not None else ():
            try:
                keys[text] = PublicKey.parse(text)
            except FormatError:
                continue  # a reader would not use it either
    return tuple(keys.values())

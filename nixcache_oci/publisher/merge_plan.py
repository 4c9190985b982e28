"""Plans a merge: which small segments become one, and which bytes move for it. Pure.

Source: design section 4, promise 9.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.pack import fits_pack
from nixcache_oci.cache.record import Record, record_fields
from nixcache_oci.cache.segment import MAX_MERGED, Segment
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.writer import MAX_RECORD_BYTES, SegmentOptions, record_size
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import fingerprint
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.nix.variants import choose_variant
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

MAX_UNMERGED: Final = 16
"""Small segments that are left alone; of the publishes of more, one in eight merges."""
_TURNS: Final = 8
# Beyond this every publish merges: no turn may have come, or its publish may have been killed.
_TOO_MANY: Final = 32
MOST_LEFT: Final = MAX_UNMERGED // 2
"""Small segments beside the merged one."""
# Of paths: a larger one is gc's business, which has the time.
_MAX_SMALL: Final = 4096
# Paths of a size class: up to eight times those of the one below.
_CLASSES: Final = (8, 64, 512, _MAX_SMALL)
_MAX_TABLE_BYTES: Final = 8 * 1024 * 1024
_MAX_MOVED_BYTES: Final = 16 * 1024 * 1024
# A larger pack stays where it is.
_MAX_MOVED_PACK_BYTES: Final = 1024 * 1024
# Of the new packs, and of the table.
_MAX_NEW_LAYERS: Final = 64


def find_small(segments: Iterable[Segment]) -> list[Segment]:
    """Return what may be merged, the oldest first; ``segments`` are those that none took in."""
    small = (one for one in segments if one.condemned is None and one.paths <= _MAX_SMALL)
    return sorted(small, key=lambda one: (one.created, one.manifest))


def is_due(small: Sequence[Segment], mine: Iterable[Segment]) -> bool:
    """Tell whether this publish merges: its digest is the least of the last eight, or there are over 32.

    Publishers at once then seldom merge the same. Their ranks would not tell: each sees others before itself
    that another one does not see yet.

    Args:
        small: from ``find_small``.
        mine: that this publish pushed.
    """
    if len(small) <= MAX_UNMERGED:
        return False
    turn = min(one.manifest for one in small[-_TURNS:])
    return len(small) > _TOO_MANY or any(one.manifest == turn for one in mine)


def choose_merged(small: Sequence[Segment], table_bytes: Mapping[Digest, int]) -> list[Segment]:
    """Choose size classes from the smallest upward, until few segments are left beside the merged one.

    Args:
        small: from ``find_small``.
        table_bytes: of each table that can be read; segments without are left out.
    """
    chosen: list[Segment] = []
    size = 0
    for least, most in zip((-1, *_CLASSES), _CLASSES, strict=False):
        if len(small) - len(chosen) < MOST_LEFT:
            break
        for one in small:
            one_bytes = table_bytes.get(one.table)
            if one_bytes is None or not least < one.paths <= most or len(chosen) == MAX_MERGED:
                continue
            if size + one_bytes <= _MAX_TABLE_BYTES:
                chosen.append(one)
                size += one_bytes
    return chosen


@dataclass(frozen=True, slots=True)
class Part:
    """A segment that may be merged."""

    segment: Segment
    header: TableHeader
    records: tuple[Record, ...]
    narinfos: tuple[NarInfo, ...]
    blobs: Mapping[Digest, Descriptor]  # layers of its manifest, without the table


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What becomes one segment; its table has every path and record of the parts."""

    parts: tuple[Part, ...]
    narinfos: tuple[NarInfo, ...]  # each path once
    records: tuple[Record, ...]  # each once
    moving: Mapping[Digest, Descriptor]  # blobs whose content moves to new packs

    @property
    def blobs(self) -> dict[Digest, Descriptor]:
        """All blobs of the parts."""
        return {digest: blob for part in self.parts for digest, blob in part.blobs.items()}


def plan_merge(parts: Iterable[Part], options: SegmentOptions) -> MergePlan | None:
    """Take parts as long as they fit into one segment and its budgets; None if fewer than two do.

    A part is left out if it lists another build of a path: a table lists each path once, and which variant
    leaves is for gc to decide.
    """
    most_bytes = min(_MAX_TABLE_BYTES, (options.max_blob_bytes or _MAX_TABLE_BYTES) // 2)
    taken: list[Part] = []
    covered: dict[StorePath, str] = {}
    records: set[Record] = set()
    moving: dict[Digest, Descriptor] = {}
    staying: dict[Digest, Descriptor] = {}
    text = 0
    for part in parts:
        fingerprints = {one.store_path: fingerprint(one) for one in part.narinfos}
        more_records = records | set(part.records)
        more_moving = {**moving, **{key: one for key, one in part.blobs.items() if _is_moving(one)}}
        more_staying = {**staying, **{key: one for key, one in part.blobs.items() if not _is_moving(one)}}
        more_text = text + sum(len(one.render()) for one in part.narinfos)
        record_bytes = sum(map(record_size, more_records))
        if (
            any(covered.get(key, one) != one for key, one in fingerprints.items())
            or sum(one.size for one in more_moving.values()) > _MAX_MOVED_BYTES
            or len(more_staying) > options.max_layers - _MAX_NEW_LAYERS
            or more_text + record_bytes > most_bytes
            or record_bytes > min(MAX_RECORD_BYTES, most_bytes // 2)
        ):
            continue
        taken.append(part)
        covered |= fingerprints
        records, moving, staying, text = more_records, more_moving, more_staying, more_text
    if len(taken) < 2:  # noqa: PLR2004  one alone gains nothing
        return None
    variants = defaultdict[StorePath, list[NarInfo]](list)
    for part in sorted(taken, key=lambda one: one.segment.created, reverse=True):
        for narinfo in part.narinfos:
            variants[narinfo.store_path].append(narinfo)
    return MergePlan(
        tuple(taken),
        tuple(choose_variant(found, ()) for found in variants.values()),
        tuple(sorted(records, key=record_fields)),
        moving,
    )


def _is_moving(blob: Descriptor) -> bool:
    if blob.media_type == media_type.PACK:
        return blob.size < _MAX_MOVED_PACK_BYTES
    return fits_pack(blob.size)

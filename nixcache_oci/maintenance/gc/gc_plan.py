"""Plans gc: what becomes of each segment, as a pure function of state, options and time.

Source: design section 5.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.splitting import MAX_NARINFO_BYTES
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.maintenance.gc.leaving import choose_trimmed, choose_unlisted
from nixcache_oci.maintenance.gc.replacement import Replacement, replace_segments
from nixcache_oci.maintenance.gc.roots import count
from nixcache_oci.maintenance.gc.state import FormerIndex, GcState, Place, StoredSegment
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# A size class holds tables of up to eight times the size of its smallest.
_BITS_OF_A_CLASS: Final = 3
# A segment that is at least 1/4 full stays as it is: too few of them would fit into one.
_FULL_SHARE: Final = 4
# Of the tables that one merge reads; parsed narinfos take about four times as much memory.
_MERGED_BYTES: Final = 24 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GcOptions:
    """How gc decides."""

    retention: timedelta = timedelta(days=30)  # how long a root counts after it was superseded
    scope_ttl: timedelta | None = timedelta(days=90)  # of a scope, after its last publish; None for ever
    grace: timedelta = timedelta(days=30)  # from mark to removal: Nix remembers a narinfo as long
    min_age: timedelta = timedelta(hours=24)  # younger segments may be of an unfinished publish
    segments: SegmentOptions = field(default_factory=SegmentOptions)  # options of those that are written
    segments_of_a_class: int = 8  # more segments of about one size are merged
    # whose signatures decide between variants of a path; without any, those that the tables record
    public_keys: tuple[PublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of the plan, for people."""

    action: str  # one word
    segments: int  # their number; for `sweep`, that of former indexes
    paths: int  # number of narinfos in them
    size: int  # bytes of all their blobs; for `delete`, only of those that no other segment holds


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What becomes of each segment; each is in at most one of these."""

    keep: tuple[StoredSegment, ...] = ()  # stays as it is
    lift: tuple[StoredSegment, ...] = ()  # was condemned or unlisted, and is needed again
    wait: tuple[StoredSegment, ...] = ()  # was condemned or unlisted, and is not old enough for the next step
    condemn: tuple[StoredSegment, ...] = ()  # is dead or taken in, and gets a mark
    rewrite: tuple[Replacement, ...] = ()  # is replaced by its live paths, and gets a mark
    merge: tuple[Replacement, ...] = ()  # several are replaced by one, and get marks
    unlist: tuple[StoredSegment, ...] = ()  # its mark is older than the grace: leaves the index
    delete: tuple[StoredSegment, ...] = ()  # left the index in an earlier run: leaves the repository
    sweep: tuple[FormerIndex, ...] = ()  # are named no more, and leave the repository
    refusals: tuple[str, ...] = ()  # why this plan needs force
    roots: int = 0  # number of paths that count as roots and pins
    freed: int = 0  # bytes that `delete` frees

    @property
    def replacements(self) -> tuple[Replacement, ...]:
        """Rewrites and merges."""
        return (*self.rewrite, *self.merge)

    @property
    def changes_index(self) -> bool:
        """Whether the index has to be written."""
        unseen = any(segment.place is Place.TAG for segment in self.keep)
        return unseen or bool(self.lift or self.condemn or self.replacements or self.unlist)

    @property
    def changes_segments(self) -> bool:
        """Whether a later run finds other segments, or a changed index."""
        return self.changes_index or bool(self.delete)

    def rows(self) -> list[PlanRow]:
        """Summarize each action."""
        groups: list[tuple[str, Sequence[StoredSegment]]] = [
            ("keep", self.keep),
            ("lift", self.lift),
            ("wait", self.wait),
            ("condemn", self.condemn),
            ("rewrite", [source for one in self.rewrite for source in one.sources]),
            ("merge", [source for one in self.merge for source in one.sources]),
            ("unlist", self.unlist),
        ]
        rows = [PlanRow(action, len(group), _paths(group), _size_of(group)) for action, group in groups]
        rows.append(PlanRow("delete", len(self.delete), _paths(self.delete), self.freed))
        swept = sum(former.size for former in self.sweep)
        return [*rows, PlanRow("sweep", len(self.sweep), 0, swept)]


def plan_gc(state: GcState, options: GcOptions, moment: Moment) -> GcPlan:
    """Decide what becomes of each segment at the moment when reading began: a later one would age marks."""
    records = (record for segment in state.segments for record in segment.records)
    counting = count(records, moment, retention=options.retention, scope_ttl=options.scope_ttl)
    live = state.graph.reach(path.hash_part for path in counting.paths)
    needs = _Needs(live, counting.records)
    settled = {one.manifest for one in state.segments if moment.is_past(one.segment.created, options.min_age)}
    unmarked = [one for one in state.segments if one.is_listed and not one.is_condemned]
    taken_in = _find_taken_in(unmarked)
    dead = [
        one
        for one in unmarked
        if one.manifest in taken_in or (one.manifest in settled and not needs.anything_of(one))
    ]
    alive = _without(unmarked, dead)
    lifted = _choose_lifted(alive, state.segments, needs)
    merged = _choose_merged([one for one in alive if one.manifest in settled], options)
    in_merge = [one for group in merged for one in group]
    replaceable = [one for one in _without(alive, in_merge) if one.manifest in settled]
    trimming = choose_trimmed(
        state,
        live,
        trimmed=[*in_merge, *(one for one in replaceable if _is_mostly_dead(one, live))],
        trimmable=replaceable,
        staying=[*alive, *lifted],
    )
    rewritten = [one for one in replaceable if one.manifest in trimming.segments]
    unlisted = choose_unlisted(state, _expired(_without(state.segments, lifted), moment, options.grace))
    deleted = [
        one
        for one in _without(state.segments, lifted)
        if not one.is_listed and moment.is_long_past(one.segment.created, options.grace)
    ]
    replace_all = replace_segments(state, live, counting.records, options.public_keys)
    held = _distinct(_without(state.segments, deleted))
    return GcPlan(
        keep=tuple(_without(alive, [*in_merge, *rewritten])),
        lift=tuple(lifted),
        wait=tuple(_without(state.segments, [*unmarked, *lifted, *unlisted, *deleted])),
        condemn=tuple(dead),
        rewrite=tuple(replace_all((one,)) for one in rewritten),
        merge=tuple(replace_all(group) for group in merged),
        unlist=tuple(unlisted),
        delete=tuple(deleted),
        sweep=tuple(
            one
            for one in state.former_indexes
            if one.is_surplus or moment.is_long_past(one.created, options.grace)
        ),
        refusals=tuple(_refuse(state, counting.paths, unmarked, trimming.leaving)),
        roots=len(counting.paths),
        freed=sum(blob.size for digest, blob in _distinct(deleted).items() if digest not in held),
    )


@dataclass(frozen=True, slots=True)
class _Needs:
    """What is needed; ``live`` has one byte per path."""

    live: bytearray
    records: AbstractSet[Record]

    def anything_of(self, segment: StoredSegment) -> bool:
        return any(self.live[path] for path in segment.paths) or bool(self.records_of(segment))

    def paths_of(self, segment: StoredSegment) -> Iterator[int]:
        return (path for path in segment.paths if self.live[path])

    def records_of(self, segment: StoredSegment) -> AbstractSet[Record]:
        return self.records & frozenset(segment.records)


def _find_taken_in(segments: Sequence[StoredSegment]) -> set[Digest]:
    """Find what merged segments took in, of these, and have all of: what they name alone proves nothing."""
    by_manifest = {one.manifest: one for one in segments}
    found: set[Digest] = set()
    for merged in segments:
        named = [by_manifest[manifest] for manifest in merged.segment.merges if manifest in by_manifest]
        lacking = {variant for one in named for variant in one.variants}
        if named:
            lacking.difference_update(merged.variants)
        records = frozenset(merged.records)
        found |= {
            one.manifest
            for one in named
            if records.issuperset(one.records) and lacking.isdisjoint(one.variants)
        }
    return found


def _choose_lifted(
    alive: Iterable[StoredSegment], all_segments: Iterable[StoredSegment], needs: _Needs
) -> list[StoredSegment]:
    """Choose segments that hold what is needed and no staying one has: listed ones first, then the newest."""
    alive = list(alive)
    held = bytearray(len(needs.live))
    for one in alive:
        for path in needs.paths_of(one):
            held[path] = 1
    records = {record for one in alive for record in needs.records_of(one)}
    others = [one for one in all_segments if one.is_condemned or not one.is_listed]
    others.sort(key=lambda one: (one.is_listed, one.segment.created), reverse=True)
    lifted = []
    for one in others:
        if all(held[path] for path in needs.paths_of(one)) and needs.records_of(one) <= records:
            continue
        lifted.append(one)
        for path in needs.paths_of(one):
            held[path] = 1
        records |= needs.records_of(one)
    return lifted


def _choose_merged(segments: Iterable[StoredSegment], options: GcOptions) -> list[tuple[StoredSegment, ...]]:
    """Choose what to merge: the size classes with too many segments."""
    most_bytes = min(MAX_NARINFO_BYTES, options.segments.max_blob_bytes or MAX_NARINFO_BYTES)
    classes: defaultdict[int, list[StoredSegment]] = defaultdict(list)
    for one in segments:
        table_size = one.table.size if one.table is not None else 0
        is_full = (
            len(one.layers) > options.segments.max_layers // _FULL_SHARE
            or table_size > most_bytes // _FULL_SHARE
        )
        if not is_full:
            classes[table_size.bit_length() // _BITS_OF_A_CLASS].append(one)
    large = [group for group in classes.values() if len(group) > options.segments_of_a_class]
    return [part for group in large for part in _split_group(group)]


def _split_group(group: Sequence[StoredSegment]) -> Iterator[tuple[StoredSegment, ...]]:
    """Split a group into merges of at least two segments, whose parsed narinfos fit into memory."""
    part: list[StoredSegment] = []
    size = 0
    for one in sorted(group, key=lambda one: (one.segment.created, one.manifest)):
        table_size = one.table.size if one.table is not None else 0
        if len(part) > 1 and size + table_size > _MERGED_BYTES:
            yield tuple(part)
            part, size = [], 0
        part.append(one)
        size += table_size
    if len(part) > 1:
        yield tuple(part)


def _is_mostly_dead(segment: StoredSegment, live: bytearray) -> bool:
    """Tell whether more than half of its bytes or narinfos are dead."""
    dead = dead_bytes = count = size = 0
    for path, path_bytes in segment.sizes:
        count, size = count + 1, size + path_bytes
        if not live[path]:
            dead, dead_bytes = dead + 1, dead_bytes + path_bytes
    return 2 * dead_bytes > size or 2 * dead > count


def _expired(segments: Iterable[StoredSegment], moment: Moment, grace: timedelta) -> list[StoredSegment]:
    """Find segments whose mark is old enough, and those whose manifest is gone.

    They must also be older than the watermark, or their tags would bring them back.
    """
    return [
        one
        for one in segments
        if one.place is Place.INDEX
        and one.segment.condemned is not None
        and (
            not one.layers
            or (
                moment.is_past(one.segment.condemned, grace)
                and moment.is_long_past(one.segment.created, grace)
            )
        )
    ]


def _refuse(
    state: GcState,
    roots: AbstractSet[object],
    unmarked: Sequence[StoredSegment],
    leaving: bytearray,
) -> Iterator[str]:
    if any(one.is_listed for one in state.segments) and not roots:
        yield (
            "no root or pin counts, so nothing would be kept: publish with roots, pin what should stay,"
            " or force it"
        )
    unlisted = sum(not one.is_listed for one in state.segments)
    if unlisted and all(one.place is not Place.INDEX for one in state.segments):
        yield (
            f"the index lists nothing, not even {counted(unlisted, 'segment')} older than its watermark: it"
            " may have been damaged; find out who wrote it, or force it"
        )
    sizes = array("Q", bytes(8 * len(leaving)))
    for one in unmarked:
        for path, size in one.sizes:
            sizes[path] = size
    before = sum(sizes)
    gone = sum(size for size, is_leaving in zip(sizes, leaving, strict=True) if is_leaving)
    if 2 * gone > before:
        of_all = counted(before, "live byte")
        yield f"{gone} of {of_all} would be deleted, over half: check the plan, then force it"


def _without(segments: Iterable[StoredSegment], others: Iterable[StoredSegment]) -> list[StoredSegment]:
    left_out = {one.manifest for one in others}
    return [one for one in segments if one.manifest not in left_out]


def _paths(segments: Iterable[StoredSegment]) -> int:
    return sum(one.segment.paths for one in segments)


def _distinct(segments: Iterable[StoredSegment]) -> dict[object, Descriptor]:
    return {blob.digest: blob for one in segments for blob in one.blobs}


def _size_of(segments: Iterable[StoredSegment]) -> int:
    return sum(blob.size for blob in _distinct(segments).values())

"""Plans a repair: what to send again, and what to unlist because nobody has it. Pure.

All that refers to an unlisted path is unlisted with it: what is served stays complete (design section 5,
promise 4). A segment with unlisted paths is replaced by one with the rest and all of its records.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import SegmentTag
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.maintenance.problem import Kind, Problem
from nixcache_oci.maintenance.repair.segment_salvage import ReadSegment
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.wording import counted

_OF_A_PATH = frozenset({Kind.MISSING, Kind.CONTENT, Kind.SIGNATURE, Kind.REFERENCE})
_OF_LOST_BYTES = frozenset({Kind.MISSING, Kind.CONTENT})
_OF_A_TABLE = frozenset({Kind.SEGMENT, Kind.MALFORMED})

Listing = tuple[str, HashPart]
"""A path in one segment: the segment's tag, and the path's hash part."""


@dataclass(frozen=True, slots=True)
class NeededObject:
    """A store object that would repair something, if somebody still has it."""

    base_name: str
    nar_hashes: frozenset[NixHash] = frozenset()  # one of which its NAR must have; empty for any
    listed: tuple[NarInfo, ...] = ()  # its bad narinfos
    has_lost_bytes: bool = False  # whether its bytes have to be sent again
    has_wrong_bytes: bool = False  # whether the cache has wrong bytes in their place


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A segment, and what to keep of it."""

    source: ReadSegment
    header: TableHeader | None  # of the new table
    narinfos: tuple[NarInfo, ...]  # that stay, and that no other segment lists
    records: tuple[Record, ...]  # that no other segment holds


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What to change."""

    unlisted: Mapping[str, str] = field(default_factory=dict)  # store paths, and why
    dropped: tuple[tuple[str, str], ...] = ()  # bad entry and tag: another segment lists the path well
    left_out: tuple[tuple[str, str], ...] = ()  # what cannot be read: the segment's tag, and what it is
    lost: tuple[ReadSegment, ...] = ()  # segments that cannot be read at all, so that their paths are unknown
    rewrites: tuple[Rewrite, ...] = ()  # segments that are replaced, the lost ones included
    tags: tuple[SegmentTag, ...] = ()  # of segments whose manifests are gone, and that no index lists
    refusal: str = ""  # why this plan needs force, or an empty string


def find_needed(problems: Iterable[Problem], segments: Iterable[ReadSegment]) -> list[NeededObject]:
    """Find what would repair something; skips paths that another segment lists correctly."""
    problems = [problem for problem in problems if problem.lacks and problem.kind is not Kind.UNKNOWN]
    kinds: defaultdict[Listing, set[Kind]] = defaultdict(set)
    for problem in problems:
        # A lost reference does not make a path's own bytes bad.
        if problem.kind is not Kind.REFERENCE:
            kinds[_listing_of(problem)].add(problem.kind)
    good: set[HashPart] = set()
    listed: defaultdict[HashPart, list[NarInfo]] = defaultdict(list)
    kinds_of: defaultdict[HashPart, set[Kind]] = defaultdict(set)
    for segment in segments:
        for part, narinfo in segment.narinfos.items():
            if (segment.tag, part) in kinds:
                listed[part].append(narinfo)
                kinds_of[part] |= kinds[segment.tag, part]
            else:
                good.add(part)
    names = {HashPart.of(problem.lacks): problem.lacks for problem in problems}
    return [
        NeededObject(
            names[part],
            frozenset(narinfo.nar_hash for narinfo in listed[part]),
            tuple(listed[part]),
            has_lost_bytes=bool(kinds_of[part] & _OF_LOST_BYTES),
            has_wrong_bytes=Kind.CONTENT in kinds_of[part],
        )
        for part in sorted(names.keys() - good)
    ]


def choose_compression(wanted: Iterable[NeededObject]) -> Literal["zstd", "xz", "none"]:
    """Choose how to compress what is sent again, so that no blob gets the digest of one with wrong bytes.

    Most repositories do not accept a blob again under a digest that they have, whatever its bytes are by now.
    So the compression differs from that of the bad blobs.
    """
    used = {narinfo.compression for one in wanted if one.has_wrong_bytes for narinfo in one.listed}
    if "zstd" not in used:
        return "zstd"
    return "none" if "xz" in used else "xz"


def find_leaving(
    segments: Iterable[ReadSegment], problems: Iterable[Problem], elsewhere: AbstractSet[HashPart]
) -> dict[Listing, str]:
    """Find what has to be unlisted, and why: bad entries, and all that then refers to a missing path.

    What is ``elsewhere`` is available without these segments: upstream, or because it is sent again.
    """
    segments = list(segments)
    listings = {(one.tag, part) for one in segments for part in one.narinfos}
    leaving: dict[Listing, str] = {}
    for problem in problems:
        is_mended = problem.kind is Kind.REFERENCE and HashPart.of(problem.lacks) in elsewhere
        if problem.kind in _OF_A_PATH and not is_mended and _listing_of(problem) in listings:
            leaving.setdefault(_listing_of(problem), problem.what)
    held = Counter(part for one in segments for part in one.narinfos if (one.tag, part) not in leaving)
    names: dict[HashPart, str] = {}
    referrers: defaultdict[HashPart, list[Listing]] = defaultdict(list)
    for one in segments:
        for part, narinfo in one.narinfos.items():
            names[part] = narinfo.store_path.base_name
            for reference in narinfo.references:
                referrers[HashPart.of(reference)].append((one.tag, part))
    waiting = sorted({part for _, part in leaving if not held[part]} - elsewhere)
    while waiting:
        gone = waiting.pop()
        for tag, part in referrers[gone]:
            if part != gone and (tag, part) not in leaving:
                leaving[tag, part] = f"it refers to {names[gone]}, which nobody has"
                held[part] -= 1
                if not held[part] and part not in elsewhere:
                    waiting.append(part)
    return leaving


def plan_repair(
    segments: Sequence[ReadSegment],
    problems: Sequence[Problem],
    leaving: Mapping[Listing, str],
    restored: AbstractSet[HashPart] = frozenset(),
) -> RepairPlan:
    """Decide which segments are replaced, and by what, given ``find_leaving``.

    For a dry run, ``restored`` is what would be listed again by then.
    """
    broken = {problem.segment for problem in problems if problem.kind in _OF_A_TABLE}
    rewritten = [
        one
        for one in segments
        if one.tag in broken or any((one.tag, part) in leaving for part in one.narinfos)
    ]
    tags = {one.tag for one in rewritten}
    staying = [one for one in segments if one.tag not in tags and one.segment.condemned is None]
    held = {(part, narinfo.nar_hash) for one in staying for part, narinfo in one.narinfos.items()}
    recorded = {record for one in staying for record in one.records}
    rewrites = tuple(
        Rewrite(
            one,
            one.header,
            tuple(
                narinfo
                for part, narinfo in one.narinfos.items()
                if (one.tag, part) not in leaving and (part, narinfo.nar_hash) not in held
            ),
            tuple(record for record in one.records if record not in recorded),
        )
        for one in rewritten
    )
    kept = {part for one in segments for part in one.narinfos if (one.tag, part) not in leaving} | restored
    unlisted: dict[str, str] = {}
    dropped: list[tuple[str, str]] = []
    for one in rewritten:
        for part, narinfo in one.narinfos.items():
            why = leaving.get((one.tag, part))
            if why is not None and part in kept:
                dropped.append((str(narinfo.store_path), one.tag))
            elif why is not None:
                unlisted.setdefault(str(narinfo.store_path), why)
    salvaged = {one.tag for one in rewritten if one.left_out}
    left_out = [
        (problem.segment, f"{problem.path}: {problem.what}")
        for problem in problems
        if problem.kind is Kind.MALFORMED and problem.segment not in salvaged
    ]
    left_out += [(one.tag, line) for one in rewritten for line in one.left_out]
    lost = tuple(one for one in rewritten if one.header is None)
    refusal = _refuse(segments, unlisted, lost)
    known = {one.tag for one in segments}
    tags = {problem.segment for problem in problems if problem.kind is Kind.SEGMENT} - known
    parsed = (SegmentTag.parse(tag) for tag in sorted(tags))
    orphans = tuple(tag for tag in parsed if tag is not None)
    return RepairPlan(unlisted, tuple(dropped), tuple(left_out), lost, rewrites, orphans, refusal)


def plan_replacement(
    segments: Sequence[ReadSegment], problems: Iterable[Problem], restored: AbstractSet[HashPart]
) -> RepairPlan:
    """Decide what replaces segments whose manifests or tables are gone; everything else stays for now.

    A new segment cannot list what has lost its bytes; ``restored`` is sent again after this.
    """
    problems = list(problems)
    gone = {problem.segment for problem in problems if problem.kind is Kind.SEGMENT}
    lost = [problem for problem in problems if problem.segment in gone and problem.kind in _OF_LOST_BYTES]
    leaving = {_listing_of(problem): problem.what for problem in lost}
    return plan_repair(
        segments, [problem for problem in problems if problem.segment in gone], leaving, restored
    )


def _refuse(segments: Iterable[ReadSegment], unlisted: Mapping[str, str], lost: Iterable[ReadSegment]) -> str:
    """Refuse to unlist most of a cache: a wrong key, a missing upstream or a lost disk may be the cause."""
    unknown = sum(one.segment.paths for one in lost)
    gone = len(unlisted) + unknown
    total = len({part for one in segments for part in one.narinfos}) + unknown
    if 2 * gone <= total:
        return ""
    return (
        f"{gone} of {counted(total, 'path')} would be unlisted, over half: check the keys, the upstreams"
        " and the registry's storage, then force it"
    )


def _listing_of(problem: Problem) -> Listing:
    return problem.segment, HashPart.of(problem.path.rpartition("/")[2])

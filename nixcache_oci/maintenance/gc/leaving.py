"""Decides what leaves: when a path does, the dead paths that refer to it leave with it. Pure.

So no path is ever served without its references. Two rules: a dead path does not stay in a good segment when
one of its references is only in condemned ones: its segment is trimmed to its live paths in the run that
condemns the reference, so that both leave at the same time. And a condemned segment stays listed while
anything listed refers to a path that only it has. Source: design section 5, promise 4.
"""

from array import array
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from nixcache_oci.maintenance.gc.state import GcState, StoredSegment
from nixcache_oci.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Trimming:
    """Which segments are trimmed, and what leaves by that."""

    segments: AbstractSet[Digest]  # of which only the live paths stay
    leaving: bytearray  # one byte per path, 1 for a listed one that no uncondemned segment will hold


def choose_trimmed(
    state: GcState,
    live: bytearray,
    *,
    trimmed: Iterable[StoredSegment],
    trimmable: Iterable[StoredSegment],
    staying: Iterable[StoredSegment],
) -> Trimming:
    """Find the segments to trim because they hold dead paths whose references leave.

    ``trimmed`` are trimmed anyway, ``trimmable`` may be as well. ``staying`` are all that are not condemned
    after this run; a trimmed one counts as its replacement. ``live`` has one byte per path.
    """
    chosen = {one.manifest for one in trimmed}
    held = array("I", bytes(4 * state.graph.count))
    staying = list(staying)
    for one in staying:
        is_trimmed = one.manifest in chosen
        for path in one.paths:
            held[path] += bool(live[path] or not is_trimmed)
    leaving = bytearray(state.graph.count)
    for one in state.segments:
        for path in one.paths if one.is_listed else ():
            leaving[path] = not held[path]
    kept = {one.manifest for one in staying}
    others = [one for one in trimmable if one.manifest in kept - chosen]
    # Trimming one segment may remove a reference of another's path, so repeat until nothing changes.
    while more := [one for one in others if _refers_to_leaving(state, one, live, leaving)]:
        chosen |= {one.manifest for one in more}
        others = [one for one in others if one.manifest not in chosen]
        for one in more:
            for path in one.paths:
                if not live[path]:
                    held[path] -= 1
                    leaving[path] = not held[path]
    return Trimming(chosen, leaving)


def _refers_to_leaving(state: GcState, segment: StoredSegment, live: bytearray, leaving: bytearray) -> bool:
    """Tell whether a segment holds a dead path with a reference that leaves."""
    return any(
        leaving[reference]
        for path in segment.paths
        if not live[path]
        for reference in state.graph.references(path)
    )


def choose_unlisted(state: GcState, expired: Iterable[StoredSegment]) -> list[StoredSegment]:
    """Choose the expired segments to remove from the index: those that hold nothing others refer to."""
    candidates = {one.manifest: one for one in expired}
    if not candidates:
        return []
    newest_first = sorted(candidates.values(), key=lambda one: one.segment.created, reverse=True)
    holders = array("I", bytes(4 * state.graph.count))  # place in newest_first from 1; 0 for none
    for place in range(len(newest_first), 0, -1):
        for path in newest_first[place - 1].paths:
            holders[path] = place
    served = bytearray(state.graph.count)
    serving = [one for one in state.segments if one.is_listed and one.manifest not in candidates]
    for one in serving:
        _serve(one, served)
    # Segments that are kept for this are searched as well: they may refer to paths of further ones.
    for one in serving:
        for path in one.paths:
            for reference in state.graph.references(path):
                if served[reference] or not holders[reference]:
                    continue
                kept = newest_first[holders[reference] - 1]
                if candidates.pop(kept.manifest, None) is not None:
                    _serve(kept, served)
                    serving.append(kept)
    return list(candidates.values())


def _serve(segment: StoredSegment, served: bytearray) -> None:
    for path in segment.paths:
        served[path] = 1

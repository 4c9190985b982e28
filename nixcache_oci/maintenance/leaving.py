"""What leaves: when a path does, the dead paths that refer to it leave with it.

So nobody is ever served a path whose references are gone. Two rules, both pure. A dead path does not stay
in a good segment when a reference of it is left in condemned ones only: its segment is trimmed to what is
live, in the same run that condemns the reference, so that both leave at the same time. And a condemned
segment stays listed as long as anything that is listed refers to a path that only it has.
Source: design section 5, promise 4.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from nixcache_oci.maintenance.gc_state import GcState, StoredSegment
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Trimming:
    """What stays uncondemned.

    Attributes:
        segments: those of which only what is live stays.
        leaving: paths that are listed, and that no uncondemned segment will hold.
    """

    segments: AbstractSet[Digest]
    leaving: AbstractSet[HashPart]


def choose_trimmed(
    state: GcState,
    live: AbstractSet[HashPart],
    *,
    trimmed: Iterable[StoredSegment],
    trimmable: Iterable[StoredSegment],
    staying: Iterable[StoredSegment],
) -> Trimming:
    """Find the segments that hold dead paths whose references leave, beside those that are trimmed anyway.

    Args:
        state: all that there is.
        live: what counting roots reach.
        trimmed: only what is live in these stays.
        trimmable: those that may be added to these.
        staying: every segment that is not condemned after this run; a trimmed one stays by what replaces it.
    """
    may_trim = {one.manifest for one in trimmable}
    chosen = {one.manifest for one in trimmed}
    held: Counter[HashPart] = Counter()
    dead_in: defaultdict[HashPart, list[StoredSegment]] = defaultdict(list)
    for one in staying:
        held.update(one.narinfos.keys() & live)
        if one.manifest not in chosen:
            dead = one.narinfos.keys() - live
            held.update(dead)
            for path in dead:
                dead_in[path].append(one)
    referrers: defaultdict[HashPart, list[HashPart]] = defaultdict(list)
    for path in dead_in:
        for reference in state.references[path]:
            referrers[reference].append(path)
    listed = {path for one in state.segments if one.is_listed for path in one.narinfos}
    leaving = {path for path in listed if not held[path]}
    waiting = list(leaving)
    while waiting:
        for referrer in referrers[waiting.pop()]:
            for one in dead_in[referrer]:
                if one.manifest in chosen or one.manifest not in may_trim:
                    continue
                chosen.add(one.manifest)
                dead = one.narinfos.keys() - live
                held.subtract(dead)
                gone = {path for path in dead if not held[path]}
                leaving |= gone
                waiting += gone
    return Trimming(chosen, leaving)


def choose_unlisted(state: GcState, expired: Iterable[StoredSegment]) -> list[StoredSegment]:
    """Take away from the expired segments those that hold what others still refer to.

    Args:
        state: all that there is.
        expired: segments that may leave the index.
    """
    candidates = {one.manifest: one for one in expired}
    newest_first = sorted(candidates.values(), key=lambda one: one.segment.created, reverse=True)
    holders: dict[HashPart, StoredSegment] = {}
    for one in newest_first:
        for path in one.narinfos:
            holders.setdefault(path, one)
    served: set[HashPart] = set()
    waiting = [
        path
        for one in state.segments
        if one.is_listed and one.manifest not in candidates
        for path in one.narinfos
    ]
    served.update(waiting)
    while waiting:
        for reference in state.references[waiting.pop()]:
            if reference in served or reference not in holders:
                continue
            kept = candidates.pop(holders[reference].manifest, None)
            if kept is not None:
                fresh = kept.narinfos.keys() - served
                served |= fresh
                waiting += fresh
    return list(candidates.values())

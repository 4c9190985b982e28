"""The index that gc writes: the one read right before the write, changed by the plan. Pure.

Changes by other writers since gc's start are kept: a segment that was lifted meanwhile is not unlisted, and a
mark that was set meanwhile stays. Source: design sections 2 and 5, promise 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.listing import Union
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan
from nixcache_oci.maintenance.gc.state import GcState
from nixcache_oci.oci import media_type


@dataclass(frozen=True, slots=True)
class PreparedGc:
    """A plan with the state and options that it was made from."""

    state: GcState
    options: GcOptions
    plan: GcPlan


def change_index(
    union: Union, prepared: PreparedGc, written: Sequence[Sequence[Segment]], now: datetime
) -> CacheIndex:
    """Make the index.

    Args:
        union: tags and index, as read right before the write.
        prepared: the plan, and the state at gc's start.
        written: the segments that were pushed for each of the plan's replacements, in order.
        now: the time of the write, which marks get: earlier readers did not see them. A slow write shortens
            the grace by its duration.
    """
    plan = prepared.plan
    read = {segment.manifest: segment for segment in union.index.segments}
    lifted = {one.manifest for one in plan.lift}
    condemned = {one.manifest for one in plan.condemn} | {
        source.manifest
        for replacement, segments in zip(plan.replacements, written, strict=True)
        if all(read.get(one.manifest, one).condemned is None for one in segments)
        for source in replacement.sources
    }
    # If a tag's manifest could not be read, the watermark stays, and so does all that is newer.
    unlisted = {one.manifest: one.segment.condemned for one in plan.unlist} if union.is_complete else {}
    changed = []
    for manifest, segment in read.items():
        if manifest in unlisted and segment.condemned == unlisted[manifest]:
            continue
        if manifest in lifted:
            changed.append(mark(segment, None))
        elif manifest in condemned and segment.condemned is None:
            changed.append(mark(segment, now))
        else:
            changed.append(segment)
    needed = [one.segment for one in plan.keep]
    needed += [mark(one.segment, None) for one in plan.lift]
    needed += [segment for segments in written for segment in segments]
    watermark = union.index.watermark
    if union.is_complete:
        watermark = max(watermark, prepared.state.started - prepared.options.grace)
    index = replace(union.index, segments=tuple(changed), watermark=watermark)
    # Another gc may have unlisted what this one found to be needed.
    return index.with_segments(segment for segment in needed if segment.manifest not in read)


def mark(segment: Segment, time: datetime | None) -> Segment:
    """Set the mark of a condemned segment; None removes it."""
    descriptor = segment.descriptor
    annotations = dict(descriptor.annotations)
    annotations.pop(media_type.ANNOTATION_CONDEMNED, None)
    if time is not None:
        annotations[media_type.ANNOTATION_CONDEMNED] = format_time(time)
    return Segment.from_descriptor(replace(descriptor, annotations=annotations))

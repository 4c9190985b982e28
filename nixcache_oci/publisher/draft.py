"""The draft of a commit: the narinfos and segments that are about to be listed, decided once all is staged.

Pure but for the time that the tables tell. Source: design section 4, promises 3 and 4.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cache.writer import SegmentDraft, TableBlob, draft_segments
from nixcache_oci.errors import Error
from nixcache_oci.nix.nar_check import can_unpack
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.nar_upload import Uploaded
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan, find_dependents
from nixcache_oci.publisher.signing import sign_all

MakeRecords = Callable[[AbstractSet[str]], Sequence[PublishRecord]]
"""Gives the records to leave where some paths could not be published; base names."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is about to be listed.

    Attributes:
        narinfos: signed, references first.
        failed: why each of the others is not listed, by base name.
        segments: to be pushed, in this order.
        table: of the only segment, where it was sent ahead, while the last blobs were on their way.
    """

    narinfos: tuple[NarInfo, ...]
    failed: Mapping[str, str]
    segments: tuple[SegmentDraft, ...]
    table: TableBlob | None = None


def make_draft(
    plan: PublishPlan,
    uploaded: Uploaded,
    blobs: Mapping[Digest, Descriptor],
    make_records: MakeRecords,
    options: PublishOptions,
) -> Draft:
    """Decide what is listed; a closure is, or nothing of it that refers to what failed.

    Args:
        plan: what was to be sent, or listed again.
        uploaded: what was sent.
        blobs: descriptors of what is listed again.
        make_records: gives what is left for gc to count.
        options: of the publish.

    Raises:
        Error: something failed, and ``options`` want all or nothing.
    """
    failed = dict(uploaded.failed)
    for base_name, cause in find_dependents(plan.push, uploaded.failed.keys()).items():
        failed[base_name] = f"it refers to {cause}, which is not published"
    if failed and options.is_strict:
        raise Error(f"--strict: nothing is listed: {next(iter(failed.values()))}")
    sent = [one for one in uploaded.narinfos if one.store_path.base_name not in failed]
    narinfos = _sign(plan, sent, options)
    header = TableHeader(
        now(), source=options.source, public_keys=tuple(str(key) for key in options.public_keys)
    )
    segments = draft_segments(
        header, narinfos, {**uploaded.blobs, **blobs}, make_records(failed.keys()), options.segments
    )
    return Draft(tuple(narinfos), failed, tuple(segments))


def _sign(plan: PublishPlan, sent: Sequence[NarInfo], options: PublishOptions) -> list[NarInfo]:
    """Sign what was held to its NarHash here, and nothing else."""
    relisted = [narinfo for _, narinfo in plan.relist]
    checked = [one for one in sent if can_unpack(one.compression)]
    signed = sign_all([*checked, *(relisted if plan.is_from_store else ())], options.keys)
    by_path = {narinfo.store_path: narinfo for narinfo in signed}
    return [by_path.get(narinfo.store_path, narinfo) for narinfo in (*sent, *relisted)]

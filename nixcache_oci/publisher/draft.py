"""The draft of a commit: the signed narinfos and the segments to list, decided once all is staged.

Pure, except for the time in the tables. The local store is not changed. Source: design section 4, promises 3
and 4.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final, Self

from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cache.writer import SegmentDraft, TableBlob, draft_segments
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import Error
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint, has_signature
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.migration import Conversion
from nixcache_oci.publisher.nar_upload import Uploaded
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan, find_dependents

MAX_SIGNATURES: Final = 64
"""Limit per published narinfo, our own first: readers refuse one of over 256 lines."""

MakeRecords = Callable[[AbstractSet[str]], Sequence[PublishRecord]]
"""Makes the records, given the base names of paths that could not be published."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is about to be listed."""

    narinfos: tuple[NarInfo, ...]  # signed, references first
    failed: Mapping[str, str]  # why the others are not listed, by base name
    segments: tuple[SegmentDraft, ...]  # to be pushed, in this order
    table: TableBlob | None = None  # of the only segment, if it was sent ahead of the last blobs


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a publish."""

    listed: tuple[NarInfo, ...] = ()  # narinfos that were not listed before, or not signed by every key
    failed: Mapping[str, str] = field(default_factory=dict)  # why others are not listed, by base name
    segments: tuple[Segment, ...] = ()  # that were added
    conversion: Conversion | None = None  # of a version 1 cache, if any
    listing: Listing | None = None  # of the index, as read back; None if others interfered
    is_needless: bool = False  # nothing was written, because all is listed and recorded

    @property
    def is_index_confirmed(self) -> bool:
        """Whether the index lists all of it; if not, tags keep it until another writer lists it."""
        return self.listing is not None or not self.segments

    def followed_by(self, more: Self) -> Self:
        """Combine the results of two rounds."""
        return replace(
            more,
            listed=(*self.listed, *more.listed),
            failed={**self.failed, **more.failed},
            segments=(*self.segments, *more.segments),
            conversion=self.conversion or more.conversion,
        )


def make_draft(
    plan: PublishPlan,
    uploaded: Uploaded,
    blobs: Mapping[Digest, Descriptor],
    make_records: MakeRecords,
    options: PublishOptions,
    is_checked: Callable[[PathInfo], bool],
) -> Draft:
    """Decide what is listed: nothing that refers to a failed path.

    What was sent is signed only if it ``is_checked`` against its NarHash here. ``blobs`` are of what is
    listed again. Error if something failed, and ``options.is_strict``.
    """
    failed = dict(uploaded.failed)
    for base_name, cause in find_dependents(plan.push, uploaded.failed.keys()).items():
        failed[base_name] = f"it refers to {cause}, which is not published"
    if failed and options.is_strict:
        raise Error(f"--strict: nothing is listed: {next(iter(failed.values()))}")
    sent = [one for one in uploaded.narinfos if one.store_path.base_name not in failed]
    relisted = [narinfo for _, narinfo in plan.relist]
    checked = {info.store_path for info in plan.push if is_checked(info)}
    may_sign = [one for one in sent if one.store_path in checked] + (relisted if plan.is_from_store else [])
    signed = {narinfo.store_path: narinfo for narinfo in sign_all(may_sign, options.keys)}
    narinfos = [signed.get(narinfo.store_path, narinfo) for narinfo in (*sent, *relisted)]
    header = TableHeader(
        now(), source=options.source, public_keys=tuple(str(key) for key in options.public_keys)
    )
    segments = draft_segments(
        header, narinfos, {**uploaded.blobs, **blobs}, make_records(failed.keys()), options.segments
    )
    return Draft(tuple(narinfos), failed, tuple(segments))


def sign_all(narinfos: Iterable[NarInfo], keys: Sequence[SecretKey]) -> list[NarInfo]:
    """Add missing signatures, and keep those by other keys; Error if one made just now does not verify."""
    public_keys = [key.public_key for key in keys]
    own = {key.name for key in keys}
    signed = []
    for narinfo in narinfos:
        covered = fingerprint(narinfo)
        sigs = list(narinfo.sigs)
        for key, public_key in zip(keys, public_keys, strict=True):
            if has_signature(public_key, covered, sigs):
                continue
            sig = key.sign(covered)
            if not public_key.verify(covered, sig):
                raise Error(f"{narinfo.store_path}: the signature made with key {key.name} does not verify")
            # One of this name that does not verify is by another key, or of another build.
            sigs = [*(one for one in sigs if one.key_name != key.name), sig]
        if len(sigs) > MAX_SIGNATURES:
            sigs = sorted(sigs, key=lambda sig: sig.key_name not in own)[:MAX_SIGNATURES]
        signed.append(replace(narinfo, sigs=tuple(sigs)))
    return signed

"""Index repair: segments whose manifests are missing, though no gc deleted them, are salvaged.

Registries refuse an index that lists a missing manifest: one segment deleted by a retention rule would block
all later writes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.listing import find_missing_manifests
from nixcache_oci.cache.salvage import Salvage, salvage
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.timestamp import now, other_than
from nixcache_oci.cache.writer import SegmentOptions, write_segments
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import RegistryError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

# These refusals of an index are not about what it lists.
_OTHER_REFUSALS: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
_CHILD_UNKNOWN: Final = ("MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN")

Tell = Callable[[str], None]
"""Receives one line for people."""


class IndexRepair:
    """Replaces missing segments, each once, however often the index is written.

    Args:
        repository: of the cache.
        known: segments that exist.
        tell: receives a line about missing ones.
    """

    def __init__(self, repository: Repository, known: Iterable[Segment], tell: Tell) -> None:
        self._repository = repository
        self._budget = TableBudget()
        self._there = {segment.manifest for segment in known}
        self._tell = tell
        self._replaced = dict[Digest, tuple[Segment, ...]]()

    async def repair(self, index: CacheIndex, suspects: Iterable[Segment]) -> CacheIndex:
        """Remove the missing ones of the suspects from an index, and list what is left of them."""
        listed = {segment.manifest for segment in index.segments}
        asked = [one for one in suspects if one.manifest in listed - self._there - self._replaced.keys()]
        gone = await find_missing_manifests(self._repository, asked)
        kept = lost = 0
        for segment in gone:
            is_counted = segment.condemned is None
            rest = await salvage(self._repository, segment, self._budget) if is_counted else Salvage()
            written = await self._push_rest(segment, rest, index.source)
            self._replaced[segment.manifest] = tuple(written)
            self._there |= {one.manifest for one in written}
            left = len(rest.table.narinfos) if rest.table is not None else 0
            kept, lost = kept + left, lost + max(0, segment.paths - left)
        uncondemned = [segment for segment in gone if segment.condemned is None]
        if uncondemned:
            self._tell(_describe_gone(self._repository, uncondemned, kept, lost))
        staying = tuple(one for one in index.segments if one.manifest not in self._replaced)
        if len(staying) == len(index.segments):
            return index
        new = (one for manifest, segments in self._replaced.items() if manifest in listed for one in segments)
        return replace(index, segments=staying).with_segments(new)

    async def _push_rest(self, gone: Segment, rest: Salvage, source: str | None) -> list[Segment]:
        if rest.table is None or not (rest.table.narinfos or rest.table.records):
            return []
        return await write_segments(
            self._repository,
            replace(rest.table.header, created=other_than(now(), gone.created)),
            order_by_references(rest.table.narinfos),
            rest.blobs,
            rest.table.records,
            options=SegmentOptions(source=source),
        )


def _describe_gone(repository: Repository, gone: Sequence[Segment], kept: int, lost: int) -> str:
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    are_gone = "are gone, although no gc deleted them" if more else "is gone, although no gc deleted it"
    left = f"{counted(kept, 'path')} recovered, {lost or 'none'} lost"
    again = ": publish again what you need of those" if lost else ""
    return (
        f"{repository.name}: {gone[0].tag}{more} {are_gone}: keep retention rules and clean-up jobs away from"
        f" the tags {INDEX_TAG} and segment-*. {left}{again}. 'nixcache-oci verify --repair' finds what else"
        " is missing"
    )


def name_child(error: RegistryError, index: CacheIndex) -> RegistryError:
    """Say which segment an index was refused for, though its manifest is there, and what to do about it."""
    named = [str(one.tag) for one in index.segments if one.manifest.hex in str(error)]
    if error.code not in _CHILD_UNKNOWN and not named:
        return error
    which = named[0] if named else "a segment that the index lists"
    return RegistryError(
        f"{error}; it refuses {which}: 'nixcache-oci verify --repair' replaces what is damaged",
        status=error.status,
        code=error.code,
        is_temporary=error.is_temporary,
        retry_after=error.retry_after,
    )


def may_be_about_a_child(error: RegistryError) -> bool:
    """Check whether a registry may have refused an index for what it lists; error codes differ."""
    if error.code in _CHILD_UNKNOWN:
        return True
    status = error.status or 0
    return (
        HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _OTHER_REFUSALS
    )

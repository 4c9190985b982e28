"""Salvaging a segment whose manifest, or some of whose blobs, are missing.

Retention rules and clean-up jobs of registries delete manifests, and their collectors then blobs, at once or
weeks later. A new segment lists what can still be read, except paths that refer to lost ones: a closure is
listed whole or not at all.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_inflation import read_table
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import probe_blob
from nixcache_oci.errors import DigestError, FormatError, RegistryError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

_PARALLEL_REQUESTS: Final = 16


@dataclass(frozen=True, slots=True)
class Salvage:
    """What is left.

    Attributes:
        table: the old header and records, with the remaining narinfos; None if unreadable.
        blobs: descriptor of each blob that the narinfos point into.
        lost: store paths that are dropped, and why.
    """

    table: Table | None = None
    blobs: Mapping[Digest, Descriptor] = field(default_factory=dict)
    lost: Mapping[StorePath, str] = field(default_factory=dict)


async def salvage(repository: Repository, segment: Segment, budget: TableBudget | None = None) -> Salvage:
    """Read what is left of a segment, with a byte of each blob.

    Args:
        repository: of the segment.
        segment: to salvage.
        budget: shared by all such tables; one over it is lost.

    Raises:
        RegistryError: the repository could not answer.
    """
    try:
        table = await read_table(repository, segment.table, budget)
    except (DigestError, FormatError, RegistryError) as error:
        await raise_unless_damage(repository, error)
        return Salvage()
    urls: dict[Digest, tuple[NarUrl, str]] = {}
    unreadable: set[str] = set()
    for narinfo in table.narinfos:
        try:
            url = NarUrl.parse(narinfo.url)
        except FormatError:
            unreadable.add(narinfo.store_path.base_name)
        else:
            urls[url.blob] = url, narinfo.compression

    async def describe(url: NarUrl, compression: str) -> Descriptor | None:
        try:
            size = await probe_blob(repository, url.blob)
        except (DigestError, RegistryError) as error:
            await raise_unless_damage(repository, error)
            return None
        if url.offset is None:
            return describe_nar(url.blob, compression, size)
        return Descriptor(media_type.PACK, url.blob, size)

    found = await run_all((describe(*one) for one in urls.values()), _PARALLEL_REQUESTS)
    blobs = {blob.digest: blob for blob in found if blob is not None}
    return without_lost(table, blobs, unreadable)


def without_lost(table: Table, blobs: Mapping[Digest, Descriptor], unreadable: Iterable[str] = ()) -> Salvage:
    """Drop paths without a blob, and what refers to them.

    Args:
        table: as it was.
        blobs: that exist.
        unreadable: base names that count as lost.
    """
    unreadable = set(unreadable)
    readable = [one for one in table.narinfos if one.store_path.base_name not in unreadable]
    lost = find_lost(readable, blobs.keys(), unreadable)
    lost |= {
        one.store_path: "its narinfo points outside the cache"
        for one in table.narinfos
        if one.store_path.base_name in unreadable
    }
    kept = tuple(one for one in readable if one.store_path not in lost)
    return Salvage(Table(table.header, table.records, kept), blobs, lost)


def find_lost(
    narinfos: Sequence[NarInfo], blobs: Iterable[Digest], unreadable: Iterable[str]
) -> dict[StorePath, str]:
    """Decide which paths are lost, and why: a closure is listed whole or not at all.

    Args:
        narinfos: of one table.
        blobs: that exist.
        unreadable: base names that count as lost.
    """
    blobs = set(blobs)
    referrers: defaultdict[str, list[str]] = defaultdict(list)
    for narinfo in narinfos:
        for reference in narinfo.references:
            referrers[reference].append(narinfo.store_path.base_name)
    reasons = {
        narinfo.store_path.base_name: "its NAR is no longer in the repository"
        for narinfo in narinfos
        if NarUrl.parse(narinfo.url).blob not in blobs
    }
    causes = {base_name: base_name for base_name in (*unreadable, *reasons)}
    queue = deque(causes)
    while queue:
        base_name = queue.popleft()
        for referrer in referrers[base_name]:
            if referrer not in causes:
                causes[referrer] = causes[base_name]
                reasons[referrer] = f"it refers to {causes[base_name]}, which is left out"
                queue.append(referrer)
    paths = (narinfo.store_path for narinfo in narinfos)
    return {path: reasons[path.base_name] for path in paths if path.base_name in reasons}

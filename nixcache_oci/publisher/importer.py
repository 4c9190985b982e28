"""The import: copies another binary cache without building, compressing or signing anything anew.

An import is a publish whose store is that cache: with the same plan, packs and commit.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.binary_cache.source import BinaryCache
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.nix.closure import find_tops, order_by_references
from nixcache_oci.nix.nar_check import can_unpack
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, fingerprint
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.publisher.committer import Committer
from nixcache_oci.publisher.contents import find_missing_upstream
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.import_candidates import Candidates
from nixcache_oci.publisher.import_staging import CopyNarStager
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import (
    FindListed,
    PublishPlan,
    find_dependents,
    is_signed_by_all,
    is_upstreams,
)


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What happens to each path."""

    plan: PublishPlan  # of those that are imported
    left_out: Mapping[str, str] = field(default_factory=dict)  # why others are not, by any name


class Importer:
    """Imports from one binary cache into one repository; upstreams may have what the source lacks."""

    def __init__(
        self,
        repository: Repository,
        source: BinaryCache,
        folder: IndexFolder,
        upstreams: Upstreams,
        options: PublishOptions,
        progress: Progress,
    ) -> None:
        self._narinfos = dict[StorePath, NarInfo]()
        stager = CopyNarStager(source, self._narinfos, options.jobs, options.segments.max_blob_bytes)
        self.committer = Committer(repository, folder, stager, options, progress)
        self._upstreams = upstreams
        self._options = options
        self._progress = progress

    async def plan(self, candidates: Candidates) -> ImportPlan:
        """Decide what happens to the candidates; Error if an upstream or the repository could not answer."""
        self._narinfos.update((narinfo.store_path, narinfo) for narinfo in candidates.narinfos.values())
        contents = self.committer.planned = await self.committer.contents.read()
        parts = {HashPart.of(base_name): base_name for base_name in sorted(candidates.absent)}
        asked = {part: base_name for part, base_name in parts.items() if contents.find(part) is None}
        missing = await find_missing_upstream(self._upstreams, asked, self._progress)
        return await asyncio.to_thread(
            make_import_plan,
            candidates,
            {asked[part] for part in missing},
            contents.find,
            self._options.public_keys,
            self._options.upstream_key_names,
        )

    async def take(
        self,
        plan: ImportPlan,
        record: PublishRecord,
        name_root: Callable[[StorePath], str] = lambda path: path.base_name,
    ) -> Published:
        """Send what the plan says, and list it; paths without referrers become roots of the record.

        Raises:
            Error: the repository refused, the source is down, or nothing more can be staged; what was sent is
                not listed, and the next run reuses it.
        """
        listed = plan.plan.listed

        def with_roots(failed: AbstractSet[str]) -> list[PublishRecord]:
            taken = [info for info in listed if info.store_path.base_name not in failed]
            tops = [info.store_path for info in find_tops(taken)]
            roots = tuple((name_root(path), path) for path in tops)
            # If something failed, the records of earlier imports stay valid.
            return [replace(record, roots=roots, is_partial=record.is_partial or bool(failed))]

        return await self.committer.publish(plan.plan, with_roots)


def make_import_plan(
    candidates: Candidates,
    missing: AbstractSet[str],
    find_listed: FindListed,
    keys: Sequence[PublicKey],
    upstream_key_names: AbstractSet[str],
) -> ImportPlan:
    """Plan the import; base names in ``missing`` are of references that nobody has.

    Listed paths are not sent again, unless they need our signature: for that, the NAR has to be checked.
    """
    infos = {name: _path_info(narinfo) for name, narinfo in candidates.narinfos.items()}
    ordered = order_by_references(infos.values())
    listed = {info.store_path: find_listed(info.store_path.hash_part) for info in ordered}
    left_out = dict(candidates.bad)
    bad = {name for name in candidates.bad_references if find_listed(HashPart.of(name)) is None}
    unlisted = [
        info
        for info in ordered
        if listed[info.store_path] is None and not is_upstreams(info, upstream_key_names)
    ]
    for base_name, cause in find_dependents(unlisted, bad | missing).items():
        why = "which nobody has" if cause in missing else "which is not imported"
        left_out[base_name] = f"it refers to {cause}, {why}"
    upstream: list[PathInfo] = []
    cached: list[PathInfo] = []
    relist: list[tuple[PathInfo, NarInfo]] = []
    push: list[PathInfo] = []
    for info in ordered:
        base_name = info.store_path.base_name
        there = listed[info.store_path]
        if base_name in left_out:
            continue
        if is_upstreams(info, upstream_key_names):
            upstream.append(info)
        elif there is None:
            push.append(info)
        elif fingerprint(there) != fingerprint(info):
            cached.append(info)  # another build of it, which serves clients as well
        elif can_unpack(candidates.narinfos[base_name].compression) and not is_signed_by_all(there, keys):
            push.append(info)
        elif set(info.sigs) <= set(there.sigs):
            cached.append(info)
        else:
            relist.append((info, replace(there, sigs=tuple(dict.fromkeys((*there.sigs, *info.sigs))))))
    plan = PublishPlan(tuple(upstream), tuple(cached), tuple(relist), tuple(push), is_from_store=False)
    return ImportPlan(plan, left_out)


def _path_info(of: NarInfo) -> PathInfo:
    return PathInfo(of.store_path, of.nar_hash, of.nar_size, of.references, of.deriver, of.sigs, of.ca)

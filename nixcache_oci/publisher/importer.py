"""The import: another binary cache is taken over without building, compressing or signing anything anew.

An import is a publish whose store is that cache: the same plan line, the same packs, the same commit.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.binary_cache.source import BinaryCache
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, UpstreamError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.nar_check import can_unpack
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, fingerprint
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.publisher.committer import Committer
from nixcache_oci.publisher.contents import Contents, ContentsReader
from nixcache_oci.publisher.draft import MakeRecords
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
from nixcache_oci.publisher.published import Published

_REQUESTS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What becomes of each path.

    Attributes:
        plan: of those that are taken, or were.
        left_out: why each of the others is not taken, by base name, or by what else names it.
    """

    plan: PublishPlan
    left_out: Mapping[str, str] = field(default_factory=dict)


class Importer:
    """Imports from one binary cache into one repository.

    Args:
        repository: with leave to push.
        source: where from.
        folder: where tables are kept.
        upstreams: asked for what the source refers to and has not.
        options: how.
        progress: is told.
    """

    def __init__(
        self,
        repository: Repository,
        source: BinaryCache,
        folder: IndexFolder,
        upstreams: Upstreams,
        options: PublishOptions,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._source = source
        self._folder = folder
        self._upstreams = upstreams
        self._options = options
        self._progress = progress
        self._narinfos = dict[StorePath, NarInfo]()
        self._planned: Contents | None = None

    async def plan(self, candidates: Candidates) -> ImportPlan:
        """Decide what becomes of what is offered; nothing is sent.

        Raises:
            Error: an upstream or the repository could not answer.
        """
        self._narinfos = {narinfo.store_path: narinfo for narinfo in candidates.narinfos.values()}
        reader = ContentsReader(self._repository, self._folder, self._progress)
        contents = self._planned = await reader.read()
        missing = await self._find_missing_references(candidates, contents.find)
        return await asyncio.to_thread(
            make_import_plan,
            candidates,
            missing,
            contents.find,
            self._options.public_keys,
            self._options.upstream_key_names,
        )

    async def take(self, plan: ImportPlan, record: PublishRecord) -> Published:
        """Send what the plan says, and list it; what nothing else refers to becomes a root of the record.

        Raises:
            Error: the repository refused, the source does not answer any more, or nothing more can be staged;
                what was sent until then is not listed, and the next run finds it.
        """
        listed = plan.plan.listed

        def with_roots(failed: AbstractSet[str]) -> list[PublishRecord]:
            taken = [info for info in listed if info.store_path.base_name not in failed]
            roots = tuple((info.store_path.base_name, info.store_path) for info in find_roots(taken))
            # Where something is missing, what an earlier import recorded keeps counting.
            return [replace(record, roots=roots, is_partial=record.is_partial or bool(failed))]

        return await self._committer(with_roots).publish(plan.plan, self._planned)

    def warn_of_doubts(self, plan: PublishPlan) -> None:
        """Say what clients would refuse, as of a dry run; see ``Committer.check_trust``."""
        self._committer(lambda _: []).check_trust(plan, self._planned, is_dry_run=True)

    def _committer(self, make_records: MakeRecords) -> Committer:
        options = self._options
        stager = CopyNarStager(self._source, self._narinfos, options.jobs, options.encoding.max_blob_bytes)
        return Committer(self._repository, self._folder, stager, make_records, options, self._progress)

    async def _find_missing_references(self, candidates: Candidates, find_listed: FindListed) -> set[str]:
        """Find what is referred to, and is neither offered, nor listed, nor upstream; base names."""

        async def find(base_name: str) -> str | None:
            hash_part = HashPart.of(base_name)
            if find_listed(hash_part) is not None:
                return None
            try:
                return None if await self._upstreams.find(hash_part) is not None else base_name
            except UpstreamError as error:
                raise Error(f"no upstream could say whether it has {base_name}: {error}") from None

        absent = sorted(candidates.absent)
        with self._progress.stage("looking upstream", "path", len(absent)) as stage:
            answers = await run_all(map(find, absent), _REQUESTS_AT_ONCE, stage)
        return {base_name for base_name in answers if base_name is not None}


def make_import_plan(
    candidates: Candidates,
    missing: AbstractSet[str],
    find_listed: FindListed,
    keys: Sequence[PublicKey],
    upstream_key_names: AbstractSet[str],
) -> ImportPlan:
    """Decide.

    What is listed is not sent again, unless our signature is to be added: that wants a look at its NAR.

    Args:
        candidates: of the source.
        missing: what is referred to, and nobody has; base names.
        find_listed: looks a narinfo up.
        keys: what every listed path is to be signed with.
        upstream_key_names: who signs what clients get elsewhere.
    """
    infos = {name: path_info(narinfo) for name, narinfo in candidates.narinfos.items()}
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
            cached.append(info)  # another build of it, by which clients are served as well
        elif can_unpack(candidates.narinfos[base_name].compression) and not is_signed_by_all(there, keys):
            push.append(info)
        elif set(info.sigs) <= set(there.sigs):
            cached.append(info)
        else:
            relist.append((info, replace(there, sigs=tuple(dict.fromkeys((*there.sigs, *info.sigs))))))
    plan = PublishPlan(tuple(upstream), tuple(cached), tuple(relist), tuple(push), is_from_store=False)
    return ImportPlan(plan, left_out)


def path_info(narinfo: NarInfo) -> PathInfo:
    """Say what a narinfo says of its path, as a store would."""
    return PathInfo(
        narinfo.store_path,
        narinfo.nar_hash,
        narinfo.nar_size,
        narinfo.references,
        narinfo.deriver,
        narinfo.sigs,
        narinfo.ca,
    )


def find_roots(infos: Iterable[PathInfo]) -> list[PathInfo]:
    """Find those that none of the others refers to."""
    infos = list(infos)
    referred = {
        reference for info in infos for reference in info.references if reference != info.store_path.base_name
    }
    return [info for info in infos if info.store_path.base_name not in referred]

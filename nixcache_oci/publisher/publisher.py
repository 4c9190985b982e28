"""The publish: from paths in the local store to a cache that lists them, whole. Source: design section 4."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import in_background, run_all
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore, PathLike
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, UpstreamError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.publisher.committer import Committer
from nixcache_oci.publisher.contents import Contents, ContentsReader
from nixcache_oci.publisher.draft import MakeRecords
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan, is_upstreams, make_plan
from nixcache_oci.publisher.published import Published
from nixcache_oci.publisher.staging import StoreNarStager

_PARALLEL_REQUESTS: Final = 16


class Publisher:
    """Publishes paths of the local store into one repository.

    Args:
        repository: with leave to push.
        store: where the paths are.
        folder: where tables are kept.
        upstreams: asked where ``options`` say so.
        options: how.
        progress: is told.
        reading: what the cache lists, where that is being read already; the first plan takes it.

    Attributes:
        store: as given.
    """

    def __init__(
        self,
        repository: Repository,
        store: LocalStore,
        folder: IndexFolder,
        upstreams: Upstreams,
        options: PublishOptions,
        progress: Progress,
        reading: Awaitable[Contents] | None = None,
    ) -> None:
        self.store = store
        self._repository = repository
        self._folder = folder
        self._upstreams = upstreams
        self._options = options
        self._progress = progress
        self._reading = reading
        self._planned: Contents | None = None

    async def plan(self, paths: Iterable[PathLike], *, with_closure: bool = True) -> PublishPlan:
        """Decide what becomes of these paths; nothing is sent.

        Args:
            paths: as the local store takes them.
            with_closure: whether all that they reach counts.

        Raises:
            Error: the store, an upstream or the repository could not answer.
        """
        paths = list(paths)
        names = self._options.upstream_key_names
        async with AsyncExitStack() as stack:
            reading, self._reading = self._reading, None
            if reading is None:
                # Nix takes as long to tell a closure as a distant registry to tell what is listed.
                reading = await stack.enter_async_context(
                    in_background(ContentsReader(self._repository, self._folder, self._progress).read())
                )
            closure = await (self.store.closure(paths) if with_closure else self.store.infos(paths))
            missing = await self._missing_upstream(closure) if self._options.verify_upstream else frozenset()
            contents = self._planned = await reading
        # Every signature is checked: on a thread, for a large closure takes seconds.
        return await asyncio.to_thread(
            make_plan, closure, contents.find, self._options.public_keys, names, missing
        )

    async def publish(self, plan: PublishPlan, records: Sequence[PublishRecord]) -> Published:
        """Send what the plan says, and list it with the records; the errors are those of ``Committer``.

        A root that could not be sent whole becomes one that failed.
        """

        def without_failed(failed: AbstractSet[str]) -> list[PublishRecord]:
            return [_without_failed(record, failed) for record in records]

        return await self._committer(without_failed).publish(plan, self._planned)

    def warn_of_doubts(self, plan: PublishPlan) -> None:
        """Say what clients would refuse, as of a dry run; see ``Committer.check_trust``."""
        self._committer(lambda _: []).check_trust(plan, self._planned, is_dry_run=True)

    def _committer(self, make_records: MakeRecords) -> Committer:
        store, options = self.store, self._options
        stager = StoreNarStager(lambda info: store.real_path(info.store_path), options.encoding, options.jobs)
        return Committer(self._repository, self._folder, stager, make_records, options, self._progress)

    async def _missing_upstream(self, closure: Iterable[PathInfo]) -> frozenset[HashPart]:
        asked = [info for info in closure if is_upstreams(info, self._options.upstream_key_names)]

        async def is_missing(info: PathInfo) -> bool:
            try:
                return await self._upstreams.find(info.store_path.hash_part) is None
            except UpstreamError as error:
                raise Error(f"no upstream could say whether it has {info.store_path}: {error}") from None

        with self._progress.stage("looking upstream", "path", len(asked)) as stage:
            answers = await run_all(map(is_missing, asked), _PARALLEL_REQUESTS, stage)
        return frozenset(
            info.store_path.hash_part for info, is_gone in zip(asked, answers, strict=True) if is_gone
        )


def _without_failed(record: PublishRecord, failed: AbstractSet[str]) -> PublishRecord:
    """Count a root that could not be sent whole among those that failed: its last good one keeps counting."""
    lost = {name for name, path in record.roots if path.base_name in failed}
    good = tuple((name, path) for name, path in record.roots if name not in lost)
    return replace(record, roots=good, failed=(*record.failed, *sorted(lost)))

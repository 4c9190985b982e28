"""The publish: from paths in the local store to a cache that lists them, whole. Source: design section 4."""

import asyncio
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import begun, run_all
from nixcache_oci.cache.progress import Progress
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore, PathLike
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, UpstreamError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.publisher.committer import Committer
from nixcache_oci.publisher.contents import Contents
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.plan import Plan, is_upstreams, make_plan
from nixcache_oci.publisher.shipment import Shipment
from nixcache_oci.publisher.upload import Uploader

_PARALLEL_REQUESTS: Final = 16


class Publisher(Committer):
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
        def make_sender(staging: Path) -> Uploader:
            return Uploader(
                repository,
                lambda info: store.real_path(info.store_path),
                staging,
                options.packing,
                options.jobs,
                progress,
            )

        super().__init__(repository, folder, Shipment(repository, make_sender, options), options, progress)
        self.store = store
        self._upstreams = upstreams
        self._reading = reading

    async def plan(self, paths: Iterable[PathLike], *, with_closure: bool = True) -> Plan:
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
                reading = await stack.enter_async_context(begun(self._contents.read()))
            closure = await (self.store.closure(paths) if with_closure else self.store.infos(paths))
            missing = await self._missing_upstream(closure) if self._options.verify_upstream else frozenset()
            contents = self._planned = await reading
        # Every signature is checked: on a thread, for a large closure takes seconds.
        return await asyncio.to_thread(
            make_plan, closure, contents.find, self._options.public_keys, names, missing
        )

    async def _missing_upstream(self, closure: Iterable[PathInfo]) -> frozenset[HashPart]:
        asked = [info for info in closure if is_upstreams(info, self._options.upstream_key_names)]

        async def is_missing(info: PathInfo) -> bool:
            try:
                return await self._upstreams.find(info.store_path.hash_part) is None
            except UpstreamError as error:
                raise Error(f"no upstream could say whether it has {info.store_path}: {error}") from None

        with self._progress.stage("looking upstream", "paths", len(asked)) as stage:
            answers = await run_all(map(is_missing, asked), _PARALLEL_REQUESTS, stage)
        return frozenset(
            info.store_path.hash_part for info, is_gone in zip(asked, answers, strict=True) if is_gone
        )

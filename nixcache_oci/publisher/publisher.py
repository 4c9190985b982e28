"""The publish: from paths in the local store to a cache that lists them. Source: design section 4."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import replace

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import in_background
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.local_store.store import LocalStore, PathLike
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.publisher.committer import Committer
from nixcache_oci.publisher.contents import Contents, find_missing_upstream
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.merger import Merger
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan, is_upstreams, make_plan
from nixcache_oci.publisher.staging import StoreNarStager


class Publisher:
    """Publishes paths of the local store into one repository, by its committer.

    ``reading`` are the cache's contents, if they are being read already; the first plan uses them.
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
        stager = StoreNarStager(
            lambda info: store.real_path(info.store_path),
            options.encoding,
            options.jobs,
            options.segments.max_blob_bytes,
        )
        self.committer = Committer(repository, folder, stager, options, progress)
        self._merger = Merger(repository, folder, options.segments, progress)
        self._upstreams = upstreams
        self._options = options
        self._progress = progress
        self._reading = reading

    async def plan(self, paths: Iterable[PathLike], *, with_closure: bool = True) -> PublishPlan:
        """Decide what happens to these paths, or to their closure; Error if somebody could not answer."""
        paths = list(paths)
        names = self._options.upstream_key_names
        async with AsyncExitStack() as stack:
            reading, self._reading = self._reading, None
            if reading is None:
                # Nix takes as long for a closure as a distant registry for the contents.
                reading = await stack.enter_async_context(in_background(self.committer.contents.read()))
            closure = await (self.store.closure(paths) if with_closure else self.store.infos(paths))
            missing = set()
            if self._options.verify_upstream:
                asked = {
                    one.store_path.hash_part: one.store_path for one in closure if is_upstreams(one, names)
                }
                missing = await find_missing_upstream(self._upstreams, asked, self._progress)
            contents = self.committer.planned = await reading
        # On a thread: every signature is verified, which takes seconds for a large closure.
        return await asyncio.to_thread(
            make_plan, closure, contents.find, self._options.public_keys, names, missing
        )

    async def publish(self, plan: PublishPlan, records: Sequence[PublishRecord]) -> Published:
        """Send what the plan says, and list it with the records; errors as of ``Committer.publish``.

        A root without its whole closure is recorded as failed.
        """

        def without_failed(failed: AbstractSet[str]) -> list[PublishRecord]:
            return [_without_failed(record, failed) for record in records]

        return await self.committer.publish(plan, without_failed)

    async def merge(self, published: Published) -> None:
        """Merge small segments after a publish, unless told otherwise; a failure is a warning."""
        if self._options.is_merging:
            await self._merger.follow(published)


def _without_failed(record: PublishRecord, failed: AbstractSet[str]) -> PublishRecord:
    """Move roots without their whole closure to ``failed``: gc then keeps the last good build."""
    lost = {name for name, path in record.roots if path.base_name in failed}
    good = tuple((name, path) for name, path in record.roots if name not in lost)
    return replace(record, roots=good, failed=(*record.failed, *sorted(lost)))

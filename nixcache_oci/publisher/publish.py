"""The publish: from paths in the local store to a cache that lists them, whole.

Blobs, then segments, then the index; then everything is looked up again in what the cache lists, for gc may
have taken a path that was counted on. Source: design section 4.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.conversion import Conversion, convert_version1
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing, read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore, PathLike
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, RegistryError, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.plan import Plan, find_dependents, is_upstreams, make_plan
from nixcache_oci.publisher.progress import Progress
from nixcache_oci.publisher.shipment import Shipment
from nixcache_oci.publisher.signing import sign_all
from nixcache_oci.publisher.upload import Uploaded, Uploader

_ROUNDS: Final = 3
_MOST_SHOWN: Final = 10
_PARALLEL_REQUESTS: Final = 16
# What registries answer to a manifest that names a blob which they do not have (any more).
_BLOB_UNKNOWN: Final = ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it.

    Attributes:
        listed: narinfos that are listed now and were not before, or not signed by every key.
        failed: why each of the others is not listed, by base name.
        segments: what was added to the cache.
        is_index_confirmed: whether the last look at the index showed it; if not, the segments' own tags hold
            them until another writer lists them.
        conversion: what became of a version 1 cache, where there was one.
    """

    listed: tuple[NarInfo, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    is_index_confirmed: bool = True
    conversion: Conversion | None = None

    def followed_by(self, more: Self) -> Self:
        """Put together what two rounds did."""
        return replace(
            more,
            listed=(*self.listed, *more.listed),
            failed={**self.failed, **more.failed},
            segments=(*self.segments, *more.segments),
            conversion=self.conversion or more.conversion,
        )


@dataclass(frozen=True, slots=True)
class _Contents:
    """The cache at one moment, as a publisher may count on it."""

    listing: Listing
    catalog: Catalog

    def find(self, hash_part: HashPart) -> NarInfo | None:
        text = self.catalog.find(hash_part)
        return NarInfo.parse(text) if text is not None else None


class Committer:
    """Sends what a plan says, and lists it.

    Args:
        repository: with leave to push.
        folder: where tables are kept.
        shipment: sends the paths.
        options: how.
        progress: is told.
    """

    def __init__(
        self,
        repository: Repository,
        folder: IndexFolder,
        shipment: Shipment,
        options: PublishOptions,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._folder = folder
        self._shipment = shipment
        self._options = options
        self._progress = progress

    async def publish(self, plan: Plan, records: Sequence[PublishRecord]) -> Published:
        """Send what the plan says, and list it with the records.

        A root that could not be sent whole becomes one that failed.

        Raises:
            Error: the repository refused, or nothing more can be staged; what was sent until then is not
                listed, and the next run finds it.
        """
        published = await self._commit(plan, records)
        rounds = 1
        while missing := await self._find_missing(plan.listed, published):
            if rounds == _ROUNDS:
                raise Error(
                    f"{self._repository.name}: {missing[0].store_path} is gone as soon as it is listed; "
                    "find out what else deletes from this repository, then run this again"
                )
            # gc took what was counted on: it is sent as if it had never been there.
            self._progress.warn(f"{len(missing)} paths have left the cache meanwhile; they are sent again")
            published = published.followed_by(await self._commit(Plan(push=tuple(missing)), records))
            rounds += 1
        return published

    async def _find_missing(self, wanted: Sequence[PathInfo], published: Published) -> list[PathInfo]:
        if not wanted:
            return []  # nothing was counted on: another look at the cache is five round trips
        contents = await self._read_contents()
        return [
            info
            for info in wanted
            if info.store_path.base_name not in published.failed
            and contents.catalog.find(info.store_path.hash_part) is None
        ]

    async def _read_contents(self) -> _Contents:
        listing = await read_listing(self._repository)
        tables = await read_tables(self._repository, self._folder, listing)
        for tag, reason in tables.damaged.items():
            self._progress.warn(f"{tag} cannot be read, and does not count: {reason}")
        if not tables.damaged:
            # Tables that are not listed any more would stay on disk for ever.
            await asyncio.to_thread(self._folder.save, tables.listing)
        return _Contents(tables.listing, tables.catalog((), with_condemned=False))

    async def _commit(self, plan: Plan, records: Sequence[PublishRecord]) -> Published:
        """Send and list, once."""
        conversion = await self._convert()
        if conversion is not None:
            plan = plan.pushing({base_name for base_name, _ in conversion.missing})
        self._progress.begin(len(plan.push), plan.push_bytes)
        uploaded = await self._shipment.upload(plan.push)
        blobs = await self._shipment.describe_blobs(narinfo for _, narinfo in plan.relist)
        for _ in range(_ROUNDS - 1):
            try:
                published = await self._push_segments(plan, uploaded, blobs, records)
            except RegistryError as error:
                if error.code not in _BLOB_UNKNOWN:
                    raise
                # Some collectors take blobs that no manifest names yet, however fresh they are.
                self._progress.warn(f"{error}; what is missing is sent again")
                plan = plan.pushing(await self._find_gone(plan, blobs))
                uploaded = await self._shipment.upload_missing(plan.push, uploaded)
            else:
                break
        else:
            published = await self._push_segments(plan, uploaded, blobs, records)
        is_confirmed = await list_segments(
            self._repository,
            [*(conversion.segments if conversion else ()), *published.segments],
            source=self._options.repository_source,
            converted=conversion.document if conversion else None,
        )
        return replace(published, is_index_confirmed=is_confirmed, conversion=conversion)

    async def _find_gone(self, plan: Plan, blobs: Iterable[Digest]) -> set[str]:
        """Find what was only to be listed again, and whose bytes left the registry; base names."""
        gone = await self._shipment.find_gone(blobs)
        return {
            narinfo.store_path.base_name
            for _, narinfo in plan.relist
            if NarUrl.parse(narinfo.url).blob in gone
        }

    async def _push_segments(
        self,
        plan: Plan,
        uploaded: Uploaded,
        blobs: Mapping[Digest, Descriptor],
        records: Sequence[PublishRecord],
    ) -> Published:
        failed = dict(uploaded.failed)
        for base_name, cause in find_dependents(plan.push, uploaded.failed.keys()).items():
            failed[base_name] = f"it refers to {cause}, which is not published"
        if failed and self._options.is_strict:
            raise Error(f"--strict: nothing is listed, for {next(iter(failed.values()))}")
        good = [one for one in uploaded.narinfos if one.store_path.base_name not in failed]
        relisted = [narinfo for _, narinfo in plan.relist]
        narinfos = await asyncio.to_thread(self._sign, good, relisted)
        segments = await self._shipment.push_segments(
            narinfos, {**uploaded.blobs, **blobs}, [self._settle(record, failed) for record in records]
        )
        return Published(tuple(narinfos), failed, tuple(segments))

    def _sign(self, sent: Sequence[NarInfo], relisted: Sequence[NarInfo]) -> list[NarInfo]:
        return sign_all([*sent, *relisted], self._options.keys)

    def _settle(self, record: PublishRecord, failed: Mapping[str, str]) -> PublishRecord:
        """Write in a record what became of its roots."""
        return without_failed(record, failed)

    async def _convert(self) -> Conversion | None:
        listing = await read_listing(self._repository)
        document = listing.version1
        if document is None:
            return None
        version2 = replace(listing, version1=None)
        tables = await read_tables(self._repository, self._folder, version2)
        catalog = tables.catalog((), with_condemned=False)
        conversion = await convert_version1(
            self._repository,
            document,
            listed=lambda hash_part: catalog.find(hash_part) is not None,
            now=now(),
            source=self._options.repository_source,
            max_layers=self._options.max_layers,
        )
        for what, entries in (("left out", conversion.missing), ("unreadable", conversion.skipped)):
            for name, reason in entries[:_MOST_SHOWN]:
                self._progress.warn(f"version 1 entry {name}: {what}: {reason}")
            if len(entries) > _MOST_SHOWN:
                self._progress.warn(f"{len(entries) - _MOST_SHOWN} more version 1 entries are {what}")
        return conversion


class Publisher(Committer):
    """Publishes paths of the local store into one repository.

    Args:
        repository: with leave to push.
        store: where the paths are.
        folder: where tables are kept.
        upstreams: asked where ``options`` say so.
        options: how.
        progress: is told.

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

    async def plan(self, paths: Iterable[PathLike], *, with_closure: bool = True) -> Plan:
        """Decide what becomes of these paths; nothing is sent.

        Args:
            paths: as the local store takes them.
            with_closure: whether all that they reach counts.

        Raises:
            Error: the store, an upstream or the repository could not answer.
        """
        paths = list(paths)
        closure = await (self.store.closure(paths) if with_closure else self.store.infos(paths))
        names = self._options.upstream_key_names
        missing = await self._missing_upstream(closure) if self._options.verify_upstream else frozenset()
        contents = await self._read_contents()
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

        answers = await run_all((is_missing(info) for info in asked), _PARALLEL_REQUESTS)
        return frozenset(
            info.store_path.hash_part for info, is_gone in zip(asked, answers, strict=True) if is_gone
        )


def without_failed(record: PublishRecord, failed: Mapping[str, str]) -> PublishRecord:
    """Count a root that could not be sent whole among those that failed: its last good one keeps counting."""
    lost = {name for name, path in record.roots if path.base_name in failed}
    good = tuple((name, path) for name, path in record.roots if name not in lost)
    return replace(record, roots=good, failed=(*record.failed, *sorted(lost)))

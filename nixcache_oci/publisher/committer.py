"""The commit of a publish: what a plan says is sent, signed and listed.

Blobs, then segments, then the index; then everything is looked up again in what the cache lists, for gc may
have taken a path that was counted on. Source: design section 4.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from nixcache_oci.cache.commit import TableBlob, list_segments, push_empty_config
from nixcache_oci.cache.conversion import Conversion
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import begun, failing_first, run_in_thread
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table_fetch import keep_table
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import Error, RegistryError, UsageError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import is_unsigned
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.contents import Contents, ContentsReader
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.plan import Plan, find_dependents
from nixcache_oci.publisher.progress import Progress
from nixcache_oci.publisher.published import Published
from nixcache_oci.publisher.record_need import changes_nothing
from nixcache_oci.publisher.shipment import SegmentDraft, Shipment
from nixcache_oci.publisher.signing import doubt_new_keys, doubt_unsigned, sign_all
from nixcache_oci.publisher.taking_over import take_over
from nixcache_oci.publisher.upload import Uploaded
from nixcache_oci.wording import counted

_ROUNDS: Final = 3
# What registries answer to a manifest that names a blob which they do not have (any more).
_BLOB_UNKNOWN: Final = ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is about to be listed.

    Attributes:
        narinfos: signed, references first.
        failed: why each of the others is not listed, by base name.
        segments: to be pushed, in this order.
    """

    narinfos: tuple[NarInfo, ...]
    failed: Mapping[str, str]
    segments: tuple[SegmentDraft, ...]


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A draft that was made before the last blobs were sent; its only table is sent already.

    Attributes:
        staged: what it holds for.
    """

    staged: Uploaded
    draft: _Draft
    table: TableBlob


@dataclass(frozen=True, slots=True)
class _Round:
    """One commit.

    Attributes:
        published: what came of it.
        listing: what the index was seen to list after it; None where other writers came between.
        tables: those that were sent and are kept, by digest.
        gone: blobs of its segments that could not be read after it.
    """

    published: Published
    listing: Listing | None
    tables: Mapping[Digest, TableFile]
    gone: AbstractSet[Digest]


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
        self._contents = ContentsReader(repository, folder, progress)
        self._ahead: _Ahead | None = None
        self._planned: Contents | None = None  # what the cache listed when the plan was made

    async def publish(self, plan: Plan, records: Sequence[PublishRecord]) -> Published:
        """Send what the plan says, and list it with the records.

        A root that could not be sent whole becomes one that failed. Where all is listed already and no record
        changes what gc counts, nothing is written.

        Raises:
            Error: the repository refused, or nothing more can be staged; what was sent until then is not
                listed, and the next run finds it.
            UsageError: see ``check_trust``.
        """
        if self._is_needless(plan, records):
            return Published(is_needless=True)
        self.check_trust(plan)
        done = await self._commit(plan, records)
        published = done.published
        rounds = 1
        while missing := await self._find_missing(plan.listed, published, done):
            if rounds == _ROUNDS:
                raise Error(
                    f"{self._repository.name}: {missing[0].store_path} is gone as soon as it is listed; "
                    "find out what else deletes from this repository, then run this again"
                )
            # gc took what was counted on: it is sent as if it had never been there.
            self._progress.warn(
                f"sending again what has left the cache meanwhile: {counted(len(missing), 'path')}"
            )
            done = await self._commit(Plan(push=tuple(missing)), records)
            published = published.followed_by(done.published)
            rounds += 1
        return published

    def check_trust(self, plan: Plan, *, is_dry_run: bool = False) -> None:
        """Say what clients would refuse, where it was asked for or nothing is sent anyway.

        Raises:
            UsageError: it was not asked for.
        """
        options = self._options
        unsigned = sum(is_unsigned(info) and not self._can_sign(info) for info in plan.push)
        recorded = self._planned.recorded_keys if self._planned is not None else ()
        for doubt, is_allowed in (
            (doubt_unsigned(unsigned), options.allow_unsigned),
            (doubt_new_keys(options.public_keys, recorded), options.allow_new_key),
        ):
            if doubt is None:
                continue
            if is_allowed:
                self._progress.warn(doubt.what)
            elif is_dry_run:
                self._progress.warn(f"{doubt.what}: {doubt.remedy}")
            else:
                name = self._repository.name
                raise UsageError(f"{name}: nothing was published: {doubt.what}: {doubt.remedy}")

    def _can_sign(self, _info: PathInfo) -> bool:
        """Tell whether a path gets our signature on its way."""
        return bool(self._options.keys)

    def _is_needless(self, plan: Plan, records: Sequence[PublishRecord]) -> bool:
        if plan.push or plan.relist or self._planned is None or self._planned.records is None:
            return False
        recorded = self._planned.records
        return all(changes_nothing(self._settle(record, {}), recorded) for record in records)

    async def _find_missing(
        self, listed: Sequence[PathInfo], published: Published, done: _Round
    ) -> list[PathInfo]:
        """Look what the cache does not list, or not any more, and what it lists without its bytes."""
        wanted = [info for info in listed if info.store_path.base_name not in published.failed]
        lost = {
            narinfo.store_path
            for narinfo in done.published.listed
            if NarUrl.parse(narinfo.url).blob in done.gone
        }
        missing = [info for info in wanted if info.store_path not in lost]
        if missing and done.listing is not None:
            # What the index was seen to list is the least that the cache lists: tags only add to it.
            contents = await self._contents.read_tables(done.listing, done.tables)
            missing = contents.find_missing(missing)
        if missing:
            missing = (await self._contents.read()).find_missing(missing)
        lost |= {info.store_path for info in missing}
        return [info for info in wanted if info.store_path in lost]

    async def _commit(self, plan: Plan, records: Sequence[PublishRecord]) -> _Round:
        """Send and list, once."""
        self._progress.begin(len(plan.push), plan.push_bytes)
        plan, uploaded, conversion = await self._upload(plan, records)
        blobs = await self._shipment.describe_blobs(narinfo for _, narinfo in plan.relist)
        for _ in range(_ROUNDS - 1):
            try:
                published, sent = await self._push_segments(plan, uploaded, blobs, records)
            except RegistryError as error:
                if error.code not in _BLOB_UNKNOWN:
                    raise
                # Some collectors take blobs that no manifest names yet, however fresh they are.
                self._progress.warn(f"{error}; what is missing is sent again")
                plan = plan.pushing(await self._find_gone(plan, blobs.values()))
                uploaded = await self._shipment.upload_missing(plan.push, uploaded)
            else:
                break
        else:
            published, sent = await self._push_segments(plan, uploaded, blobs, records)
        # A registry may have taken a manifest by what it remembers of blobs that its collector took.
        looking = self._shipment.find_gone({**uploaded.blobs, **blobs}.values())
        async with begun(self._keep(sent)) as keeping, begun(looking) as looked:
            listing = await list_segments(
                self._repository,
                [*(conversion.segments if conversion else ()), *published.segments],
                source=self._options.repository_source,
                converted=conversion.document if conversion else None,
                tell=self._progress.warn,
            )
            tables = await keeping
            gone = await looked
        published = replace(published, is_index_confirmed=listing is not None, conversion=conversion)
        return _Round(published, listing, tables, gone)

    async def _upload(
        self, plan: Plan, records: Sequence[PublishRecord]
    ) -> tuple[Plan, Uploaded, Conversion | None]:
        """Send what the plan says, and beside it what needs none of it; gives the plan as it is then."""
        self._ahead = None
        self._repository.prepare_push(1)  # whatever comes first takes it: the table at least will come

        async def send_table(staged: Uploaded) -> None:
            # For the table, while it is written, and for the last pack, which is looked for meanwhile.
            self._repository.prepare_push(2 if plan.push else 1)
            self._ahead = await self._send_table(plan, staged, records)

        async with failing_first() as group:
            taking_over = group.create_task(
                take_over(self._repository, self._folder, self._options, self._progress)
            )
            group.create_task(push_empty_config(self._repository))
            uploaded = await self._shipment.upload(plan.push, send_table)
        conversion = taking_over.result()
        if conversion is not None:
            more = plan.pushing({base_name for base_name, _ in conversion.missing})
            if more != plan:
                self._progress.begin(len(more.push) - len(plan.push), more.push_bytes - plan.push_bytes)
                plan = more
                uploaded = await self._shipment.upload_missing(plan.push, uploaded)
        return plan, uploaded, conversion

    async def _send_table(
        self, plan: Plan, staged: Uploaded, records: Sequence[PublishRecord]
    ) -> _Ahead | None:
        """Sign and send the table while the last blobs are on their way; None where it has to wait."""
        if staged.failed or plan.relist:
            return None
        draft = await self._draft(plan, staged, {}, records)
        if len(draft.segments) > 1:
            return None  # each table is held in memory: one after another
        table = await asyncio.to_thread(TableBlob.of, draft.segments[0].table)
        try:
            await self._repository.push_blob(table.digest, table.content)
        except RegistryError as error:
            if error.code not in _BLOB_UNKNOWN:
                raise
            return None  # as with manifests: it is sent again in its turn
        return _Ahead(staged, draft, table)

    async def _keep(self, sent: Sequence[TableBlob]) -> dict[Digest, TableFile]:
        """Keep tables that were sent: nobody has to fetch them from far away."""
        return {
            table.digest: await run_in_thread(keep_table, self._folder, table.digest, table.content)
            for table in sent
        }

    async def _find_gone(self, plan: Plan, blobs: Iterable[Descriptor]) -> set[str]:
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
    ) -> tuple[Published, Sequence[TableBlob]]:
        """Push the segments; gives the tables, too, that are worth keeping."""
        ahead, self._ahead = self._ahead, None  # where this has to be done again, all of it is sent again
        sent: list[TableBlob] = []
        if ahead is not None and ahead.staged == uploaded and not blobs:
            draft = ahead.draft
            sent.append(ahead.table)
            segments = [await self._shipment.tag_segment(draft.segments[0], ahead.table)]
        else:
            draft = await self._draft(plan, uploaded, blobs, records)
            segments = await self._shipment.push_segments(draft.segments)
        return Published(draft.narinfos, draft.failed, tuple(segments)), sent

    async def _draft(
        self,
        plan: Plan,
        uploaded: Uploaded,
        blobs: Mapping[Digest, Descriptor],
        records: Sequence[PublishRecord],
    ) -> _Draft:
        failed = dict(uploaded.failed)
        for base_name, cause in find_dependents(plan.push, uploaded.failed.keys()).items():
            failed[base_name] = f"it refers to {cause}, which is not published"
        if failed and self._options.is_strict:
            raise Error(f"--strict: nothing is listed, for {next(iter(failed.values()))}")
        good = [one for one in uploaded.narinfos if one.store_path.base_name not in failed]
        relisted = [narinfo for _, narinfo in plan.relist]
        narinfos = await asyncio.to_thread(self._sign, good, relisted)
        settled = [self._settle(record, failed) for record in records]
        segments = self._shipment.draft(narinfos, {**uploaded.blobs, **blobs}, settled)
        return _Draft(tuple(narinfos), failed, tuple(segments))

    def _sign(self, sent: Sequence[NarInfo], relisted: Sequence[NarInfo]) -> list[NarInfo]:
        return sign_all([*sent, *relisted], self._options.keys)

    def _settle(self, record: PublishRecord, failed: Mapping[str, str]) -> PublishRecord:
        """Write in a record what became of its roots."""
        return without_failed(record, failed)


def without_failed(record: PublishRecord, failed: Mapping[str, str]) -> PublishRecord:
    """Count a root that could not be sent whole among those that failed: its last good one keeps counting."""
    lost = {name for name, path in record.roots if path.base_name in failed}
    good = tuple((name, path) for name, path in record.roots if name not in lost)
    return replace(record, roots=good, failed=(*record.failed, *sorted(lost)))

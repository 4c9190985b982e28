"""The commit of a publish: sends, signs and lists what a plan says.

Blobs, then segments, then the index; then everything is looked up again, because gc may have deleted a path
that was counted on. Source: design section 4.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import in_background, run_in_thread, task_group
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_fetch import keep_table
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.writer import TableBlob, push_drafts, push_empty_config, tag_segment
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import Error, RegistryError, UsageError
from nixcache_oci.nix.signature import is_unsigned
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.contents import Contents, ContentsReader
from nixcache_oci.publisher.draft import Draft, MakeRecords, Published, make_draft
from nixcache_oci.publisher.migration import Conversion, migrate_version1
from nixcache_oci.publisher.nar_upload import Uploaded, WhenStaged, upload
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan, changes_nothing, doubt_new_keys, doubt_unsigned
from nixcache_oci.publisher.staging import NarStager
from nixcache_oci.wording import counted

_ROUNDS: Final = 3
# Error codes for a manifest that names a missing blob; Quay's is a general one.
_BLOB_UNKNOWN: Final = ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_INVALID")


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is in the repository, not yet listed."""

    plan: PublishPlan  # as amended so far
    uploaded: Uploaded  # what was sent for it
    conversion: Conversion | None  # of a version 1 cache, if any
    draft: Draft | None  # of all this, if already made


@dataclass(frozen=True, slots=True)
class _Commit:
    """The result of one commit."""

    published: Published
    tables: Mapping[Digest, TableFile]  # those that were sent and kept, by digest
    missing: AbstractSet[Digest]  # blobs of its segments that could not be read afterwards


class Committer:
    """Sends what a plan says, and lists it; needs a repository with permission to push.

    Attributes:
        contents: reads what the cache lists.
        planned: what it listed when the plan was made, once that is known.
    """

    def __init__(
        self,
        repository: Repository,
        folder: IndexFolder,
        stager: NarStager,
        options: PublishOptions,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._folder = folder
        self._stager = stager
        self._options = options
        self._progress = progress
        self.contents = ContentsReader(repository, folder, progress)
        self.planned: Contents | None = None

    async def publish(self, plan: PublishPlan, make_records: MakeRecords) -> Published:
        """Send what the plan says, and list it with the records.

        If all is listed already, and no record changes what gc counts, nothing is written.

        Raises:
            Error: the repository refused, or nothing more can be staged; what was sent until then is not
                listed, and the next run finds it.
            UsageError: clients would refuse it, and nobody asked for that.
        """
        if self._is_needless(plan, make_records):
            return Published(is_needless=True)
        self._check_trust(plan, is_dry_run=False)
        done = await self._commit(plan, make_records)
        published = done.published
        rounds = 1
        while missing := await self._find_missing(plan.listed, published, done):
            if rounds == _ROUNDS:
                raise Error(
                    f"{self._repository.name}: {missing[0].store_path} disappears as soon as it is listed; "
                    "find out what else deletes from this repository, then run this again"
                )
            # gc deleted what was counted on: send it.
            self._progress.warn(
                f"sending again what has left the cache in the meantime: {counted(len(missing), 'path')}"
            )
            done = await self._commit(
                PublishPlan(push=tuple(missing)), partial(_make_more, make_records, published.failed.keys())
            )
            published = published.followed_by(done.published)
            rounds += 1
        return published

    def warn_of_doubts(self, plan: PublishPlan) -> None:
        """Say what clients would refuse, and what to do about it; nothing is sent."""
        self._check_trust(plan, is_dry_run=True)

    def _check_trust(self, plan: PublishPlan, *, is_dry_run: bool) -> None:
        options = self._options
        is_signing = bool(options.keys)
        unsigned = sum(
            is_unsigned(info) and not (is_signing and self._stager.checks(info)) for info in plan.push
        )
        recorded = self.planned.recorded_keys if self.planned is not None else ()
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

    def _is_needless(self, plan: PublishPlan, make_records: MakeRecords) -> bool:
        recorded = self.planned.records if self.planned is not None else None
        if plan.push or plan.relist or recorded is None:
            return False
        return all(changes_nothing(record, recorded) for record in make_records(frozenset()))

    async def _commit(self, plan: PublishPlan, make_records: MakeRecords) -> _Commit:
        """Send and list, once."""
        sent = await self._send(plan, make_records)
        blobs = await self.contents.describe_listed(narinfo for _, narinfo in sent.plan.relist)
        sent, draft, segments = await self._push_segments(sent, blobs, make_records)
        # A registry may accept a manifest by its record of blobs that its collector deleted.
        looking = self.contents.find_missing_blobs({**sent.uploaded.blobs, **blobs}.values())
        conversion = sent.conversion
        async with in_background(self._keep(draft.table)) as keeping, in_background(looking) as looked:
            listing = await list_segments(
                self._repository,
                [*(conversion.segments if conversion else ()), *segments],
                source=self._options.segments.source,
                converted=conversion.document if conversion else None,
                tell=self._progress.warn,
            )
            tables = await keeping
            missing = await looked
        published = Published(
            draft.narinfos,
            draft.failed,
            tuple(segments),
            conversion=conversion,
            listing=listing,
        )
        return _Commit(published, tables, missing)

    async def _send(self, plan: PublishPlan, make_records: MakeRecords) -> _Sent:
        """Send what the plan says, concurrently with what does not depend on it."""
        ahead: Draft | None = None
        self._repository.prepare_push(1)  # at least the table will be pushed

        async def send_table(staged: Uploaded) -> None:
            nonlocal ahead
            # For the table, and for the last pack, which is checked for meanwhile.
            self._repository.prepare_push(2 if plan.push else 1)
            ahead = await self._send_table(plan, staged, make_records)

        async with task_group() as group:
            migrating = group.create_task(
                migrate_version1(self._repository, self._folder, self._options, self._progress)
            )
            group.create_task(push_empty_config(self._repository))
            uploaded = await self._upload(plan.push, send_table)
        conversion = migrating.result()
        more = plan.pushing({base_name for base_name, _ in conversion.missing}) if conversion else plan
        if more == plan:
            return _Sent(plan, uploaded, conversion, ahead)
        return _Sent(more, await self._upload_missing(more.push, uploaded), conversion, None)

    async def _send_table(
        self, plan: PublishPlan, staged: Uploaded, make_records: MakeRecords
    ) -> Draft | None:
        """Sign and send the table while the last blobs are in transit; None if it has to wait."""
        if staged.failed or plan.relist:
            return None
        draft = await self._draft(plan, staged, {}, make_records)
        if len(draft.segments) > 1:
            return None  # each table is held in memory: one at a time
        table = await asyncio.to_thread(TableBlob.of, draft.segments[0].table)
        try:
            await self._repository.push_blob(table.digest, table.content)
        except RegistryError as error:
            if error.code not in _BLOB_UNKNOWN:
                raise
            return None  # as with manifests: it is sent again later
        return replace(draft, table=table)

    async def _resend_missing(self, sent: _Sent, listed: Iterable[Descriptor]) -> _Sent:
        """Send again what the registry lost, of what was sent and of what was to be listed again."""
        missing = await self.contents.find_missing_blobs(listed)
        plan = sent.plan.pushing(
            {
                narinfo.store_path.base_name
                for _, narinfo in sent.plan.relist
                if NarUrl.parse(narinfo.url).blob in missing
            }
        )
        return _Sent(plan, await self._upload_missing(plan.push, sent.uploaded), sent.conversion, None)

    async def _upload(self, infos: Sequence[PathInfo], when_staged: WhenStaged | None = None) -> Uploaded:
        return await upload(self._repository, self._stager, infos, self._options, self._progress, when_staged)

    async def _upload_missing(self, infos: Sequence[PathInfo], uploaded: Uploaded) -> Uploaded:
        """Check each blob that was sent, and send what is missing."""
        there = uploaded.blobs.keys() - await self.contents.find_missing_blobs(uploaded.blobs.values())
        kept = {one.store_path: one for one in uploaded.narinfos if NarUrl.parse(one.url).blob in there}
        again = await self._upload(
            [
                info
                for info in infos
                if info.store_path not in kept and info.store_path.base_name not in uploaded.failed
            ]
        )
        by_path = {**kept, **{one.store_path: one for one in again.narinfos}}
        return Uploaded(
            [by_path[info.store_path] for info in infos if info.store_path in by_path],
            {**{digest: uploaded.blobs[digest] for digest in there}, **again.blobs},
            {**uploaded.failed, **again.failed},
        )

    async def _draft(
        self,
        plan: PublishPlan,
        uploaded: Uploaded,
        blobs: Mapping[Digest, Descriptor],
        make_records: MakeRecords,
    ) -> Draft:
        return await asyncio.to_thread(
            make_draft, plan, uploaded, blobs, make_records, self._options, self._stager.checks
        )

    async def _push_segments(
        self, sent: _Sent, blobs: Mapping[Digest, Descriptor], make_records: MakeRecords
    ) -> tuple[_Sent, Draft, Sequence[Segment]]:
        """Push the segments; if blobs are gone, send those again, and return what was sent in the end."""
        attempt = 1
        while True:
            draft = sent.draft or await self._draft(sent.plan, sent.uploaded, blobs, make_records)
            try:
                return sent, draft, await self._push_draft(draft)
            except RegistryError as error:
                if attempt == _ROUNDS or error.code not in _BLOB_UNKNOWN:
                    raise
                # Some collectors delete blobs that no manifest names yet, however new.
                self._progress.warn(f"{error}; sending again what is missing")
            sent = await self._resend_missing(sent, blobs.values())
            attempt += 1

    async def _push_draft(self, draft: Draft) -> Sequence[Segment]:
        options = self._options.segments
        if draft.table is None:
            return await push_drafts(self._repository, draft.segments, options)
        layers = draft.segments[0].layers
        return [await tag_segment(self._repository, draft.table, layers, source=options.source)]

    async def _keep(self, table: TableBlob | None) -> dict[Digest, TableFile]:
        """Keep a table that was sent, so that it need not be fetched."""
        if table is None:
            return {}
        return {table.digest: await run_in_thread(keep_table, self._folder, table.digest, table.content)}

    async def _find_missing(
        self, listed: Sequence[PathInfo], published: Published, done: _Commit
    ) -> list[PathInfo]:
        """Find what the cache does not list, and what it lists without its blob."""
        wanted = [info for info in listed if info.store_path.base_name not in published.failed]
        lost = {
            narinfo.store_path
            for narinfo in done.published.listed
            if NarUrl.parse(narinfo.url).blob in done.missing
        }
        missing = [info for info in wanted if info.store_path not in lost]
        listing = done.published.listing
        if missing and listing is not None:
            # The cache lists at least what the index lists: tags only add to it.
            contents = await self.contents.read_tables(listing, done.tables)
            missing = contents.find_missing(missing)
        if missing:
            missing = (await self.contents.read()).find_missing(missing)
        lost |= {info.store_path for info in missing}
        return [info for info in wanted if info.store_path in lost]


def _make_more(
    make_records: MakeRecords, failed_before: AbstractSet[str], failed: AbstractSet[str]
) -> Sequence[PublishRecord]:
    return make_records(failed_before | failed)

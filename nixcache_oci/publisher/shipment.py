"""What goes over the line for a publish: blobs, and the segments that hold them together."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.cache.commit import TableBlob, push_segment, tag_segment
from nixcache_oci.cache.cutting import cut
from nixcache_oci.cache.nar_blob import describe_nar
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import has_blob
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.staging import StagingFolderError
from nixcache_oci.publisher.upload import Sender, Uploaded, WhenStaged

_PARALLEL_REQUESTS: Final = 16


@dataclass(frozen=True, slots=True)
class SegmentDraft:
    """A segment that is to be pushed.

    Attributes:
        layers: every blob that the table's narinfos point into.
    """

    table: Table
    layers: tuple[Descriptor, ...]


class Shipment:
    """Sends store objects to one repository.

    Args:
        repository: with leave to push.
        make_sender: gives what sends store objects, once, through an empty folder for staged files.
        options: how.
    """

    def __init__(
        self, repository: Repository, make_sender: Callable[[Path], Sender], options: PublishOptions
    ) -> None:
        self._repository = repository
        self._make_sender = make_sender
        self._options = options

    async def upload(self, infos: Sequence[PathInfo], when_staged: WhenStaged | None = None) -> Uploaded:
        """Send these, references first; what cannot be staged is named, and the rest sent.

        Args:
            infos: of store objects.
            when_staged: see ``Sender.run``.

        Raises:
            RegistryError: the repository refused; what was sent stays there, unlisted.
            StagingFolderError: nothing more can be staged.
        """
        try:
            staging = tempfile.TemporaryDirectory(prefix="nixcache-oci-")
        except OSError as error:
            raise StagingFolderError(
                f"cannot make a temporary folder: {error.strerror}; set TMPDIR to a writable one"
            ) from None
        with staging as folder:
            return await self._make_sender(Path(folder)).run(infos, when_staged)

    async def upload_missing(self, infos: Sequence[PathInfo], uploaded: Uploaded) -> Uploaded:
        """Look for each blob, and send again what lies in those that some collector took."""
        there = uploaded.blobs.keys() - await self.find_gone(uploaded.blobs.values())
        kept = {one.store_path: one for one in uploaded.narinfos if NarUrl.parse(one.url).blob in there}
        again = await self.upload(
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

    async def find_gone(self, blobs: Iterable[Descriptor]) -> set[Digest]:
        """Read a byte of each of these, and give those that cannot be read."""

        async def find(blob: Descriptor) -> Digest | None:
            return None if await has_blob(self._repository, blob) else blob.digest

        answers = await run_all((find(blob) for blob in blobs), _PARALLEL_REQUESTS)
        return {digest for digest in answers if digest is not None}

    async def describe_blobs(self, narinfos: Iterable[NarInfo]) -> dict[Digest, Descriptor]:
        """Describe blobs that are listed already; a descriptor needs the exact size."""
        urls = {}
        found: dict[Digest, Descriptor] = {}
        for narinfo in narinfos:
            url = NarUrl.parse(narinfo.url)
            if url.offset is None and narinfo.file_size is not None:
                found[url.blob] = describe_nar(url.blob, narinfo.compression, narinfo.file_size)
            else:
                urls[url.blob] = url

        async def describe(url: NarUrl) -> Descriptor:
            kind = media_type.NAR if url.offset is None else media_type.PACK
            return Descriptor(kind, url.blob, await self._repository.stat_blob(url.blob))

        asked = await run_all((describe(url) for url in urls.values()), _PARALLEL_REQUESTS)
        return found | {descriptor.digest: descriptor for descriptor in asked}

    def draft(
        self,
        narinfos: Sequence[NarInfo],
        blobs: Mapping[Digest, Descriptor],
        records: Sequence[PublishRecord],
    ) -> list[SegmentDraft]:
        """Put all of it into one segment, or into several where that is over a limit.

        Args:
            narinfos: references first.
            blobs: descriptor of each blob that they point into.
            records: what the publish leaves for gc to count.
        """
        header = TableHeader(
            now(),
            source=self._options.source,
            public_keys=tuple(str(key) for key in self._options.public_keys),
        )
        # References first, and the records last: who finds these finds all.
        *contents, last = cut(
            narinfos,
            blobs,
            max_layers=self._options.max_layers - 1,
            max_blob_bytes=self._options.packing.max_blob_bytes,
        )
        drafts = [SegmentDraft(Table(header, (), content.narinfos), content.layers) for content in contents]
        return [*drafts, SegmentDraft(Table(header, tuple(records), last.narinfos), last.layers)]

    async def push_segments(self, drafts: Iterable[SegmentDraft]) -> list[Segment]:
        """Push segments, one after another; all blobs that they name are there.

        Raises:
            RegistryError: the repository refused; what was pushed is found by its tag.
        """
        source = self._options.repository_source
        return [
            await push_segment(self._repository, draft.table, draft.layers, source=source) for draft in drafts
        ]

    async def tag_segment(self, draft: SegmentDraft, table: TableBlob) -> Segment:
        """Push a segment whose table is there as well, and so is the empty config.

        Raises:
            RegistryError: the repository refused.
        """
        source = self._options.repository_source
        return await tag_segment(self._repository, table, draft.layers, source=source)

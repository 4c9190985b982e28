"""The upload: store objects are staged concurrently, and sent as packs and blobs.

Bounded in memory and staged bytes, whatever the closure's size: an object reserves space from staging until
it is sent. Small ones go into packs in closure order, so that the same closure gives the same packs, and a
run that was killed finds what it sent.
"""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cache.nar_url import describe_nar
from nixcache_oci.cache.pack import FIRST_PACK_BYTES, Pack, PackBuilder, fits_pack
from nixcache_oci.cache.parallel import task_group
from nixcache_oci.cache.progress import Progress, Stage
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import has_blob
from nixcache_oci.errors import StoreError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.staging import NarStager, StagedNar, StageNar, StagingFolderError, is_large

STAGED_BYTES: Final = 1024 * 1024 * 1024
"""Staged files at once; a larger NAR goes alone."""

_MEMORY_BYTES: Final = 32 * 1024 * 1024
_LARGE_AT_ONCE: Final = 2  # each is compressed by several threads, which take memory
_UPLOADS_AT_ONCE: Final = 4


@dataclass(slots=True)
class Uploaded:
    """What is in the repository, not yet listed."""

    narinfos: list[NarInfo] = field(default_factory=list)  # with URLs of blobs and packs, references first
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)  # each blob and pack
    failed: dict[str, str] = field(default_factory=dict)  # why others could not be staged, by base name


WhenStaged = Callable[[Uploaded], Coroutine[object, object, None]]
"""Receives what will be in the repository."""


@dataclass(frozen=True, slots=True)
class _Staging:
    """A small object being staged, and the bytes reserved for it."""

    info: PathInfo
    taken: int
    nar: "asyncio.Future[StagedNar]"


class Budget:
    """Bytes that an upload may hold at once, in memory or in files.

    A request for more than the total waits until none is in use. First come, first served: small requests
    cannot starve a large one.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Condition()

    async def take(self, wanted: int) -> int:
        """Wait until so many bytes are free; returns what to give back."""
        wanted = min(wanted, self._size)
        async with self._turn, self._freed:
            await self._freed.wait_for(lambda: self._used + wanted <= self._size)
            self._used += wanted
        return wanted

    async def give_back(self, taken: int) -> None:
        """Free so many bytes."""
        async with self._freed:
            self._used -= taken
            self._freed.notify_all()


async def upload(
    repository: Repository,
    stager: NarStager,
    infos: Sequence[PathInfo],
    options: PublishOptions,
    progress: Progress,
    when_staged: WhenStaged | None = None,
) -> Uploaded:
    """Send these, references first, through a temporary folder; arguments and errors as of ``Upload.run``."""
    try:
        staging = tempfile.TemporaryDirectory(prefix="nixcache-oci-")
    except OSError as error:
        raise StagingFolderError(
            f"cannot make a temporary folder: {error.strerror}; set TMPDIR to a writable one"
        ) from None
    limit = options.segments.max_blob_bytes
    with staging as folder:
        return await Upload(repository, stager, Path(folder), options.jobs, progress, limit).run(
            infos, when_staged
        )


class Upload:
    """Sends store objects, once; ``folder``, for staged files, is empty before and after."""

    _stage: StageNar
    _pushing: Stage

    def __init__(
        self,
        repository: Repository,
        stager: NarStager,
        folder: Path,
        jobs: int,
        progress: Progress,
        max_blob_bytes: int | None = None,
    ) -> None:
        self._max_blob_bytes = max_blob_bytes
        self._repository = repository
        self._stager = stager
        self._folder = folder
        self._progress = progress
        self._memory = Budget(_MEMORY_BYTES)
        self._disk = Budget(STAGED_BYTES)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._sending: defaultdict[Digest, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sent: set[Digest] = set()
        # As many as can be staged while waiting for the oldest.
        self._stagings: asyncio.Queue[_Staging | None] = asyncio.Queue(4 * jobs)
        self._uploaded = Uploaded()

    async def run(self, infos: Sequence[PathInfo], when_staged: WhenStaged | None = None) -> Uploaded:
        """Send all of these, references first; what cannot be staged is named, and the rest sent.

        ``when_staged`` receives the result once all is staged, while the last of it is sent.

        Raises:
            RegistryError: the repository refused; what was sent stays there, unlisted.
            StagingFolderError: the staging folder is full.
        """
        order = {info.store_path: number for number, info in enumerate(infos)}
        large = [info for info in infos if is_large(info)]
        size = sum(info.nar_size for info in infos)
        pushing = self._progress.stage("pushing", "path", len(infos), size)
        try:
            with pushing as self._pushing:
                async with self._stager.opened(self._folder) as self._stage, task_group() as group:
                    # They take longest: start them first.
                    sending = [group.create_task(self._send_large(info)) for info in large]
                    group.create_task(self._stage_small(info for info in infos if not is_large(info)))
                    builder = await self._send_small(group)
                    for task in sending:
                        shrunk = await task
                        if shrunk is not None:
                            builder = await self._add(shrunk, builder, group)
                            await self._disk.give_back(shrunk.size)
                    last = builder.finish()
                    self._note_pack(last)
                    if when_staged is not None:
                        group.create_task(when_staged(self._result(order)))
                    await self._begin_pack(last, group)
        finally:
            for file in self._folder.glob("*.nar"):
                file.unlink()
        return self._result(order)

    def _result(self, order: Mapping[StorePath, int]) -> Uploaded:
        """Return what was sent, or will be, in the requested order."""
        so_far = self._uploaded
        narinfos = sorted(so_far.narinfos, key=lambda narinfo: order[narinfo.store_path])
        return Uploaded(narinfos, dict(so_far.blobs), dict(so_far.failed))

    def _note_failure(self, info: PathInfo, error: StoreError) -> None:
        self._uploaded.failed[info.store_path.base_name] = str(error)
        self._progress.warn(str(error))

    async def _send_large(self, info: PathInfo) -> StagedNar | None:
        """Send one that is staged in a file; returns it if it belongs into a pack, such as a sparse image.

        That one keeps as much of the disk budget as its file takes.
        """
        taken = await self._disk.take(info.nar_size)
        try:
            async with self._large:
                staged = await self._stage(info)
            self._pushing.advance(1, info.nar_size)
            if fits_pack(staged.size):
                taken -= staged.size
                return staged
            self._note_blob(staged)
            await self._send_blob(staged)
        except StoreError as error:
            self._note_failure(info, error)
        finally:
            await self._disk.give_back(taken)
        return None

    async def _stage_small(self, infos: Iterable[PathInfo]) -> None:
        for info in infos:
            taken = await self._memory.take(info.nar_size)
            await self._stagings.put(_Staging(info, taken, self._stage(info)))
        await self._stagings.put(None)

    async def _send_small(self, group: asyncio.TaskGroup) -> PackBuilder:
        """Send what is staged in memory; returns the last pack, which is not full yet."""
        builder = PackBuilder(FIRST_PACK_BYTES, self._max_blob_bytes)
        while (staging := await self._stagings.get()) is not None:
            try:
                staged = await staging.nar
            except StoreError as error:
                self._note_failure(staging.info, error)
                await self._memory.give_back(staging.taken)
                continue
            self._pushing.advance(1, staging.info.nar_size)
            if fits_pack(staged.size):
                builder = await self._add(staged, builder, group)
                await self._memory.give_back(staging.taken)
            else:
                self._note_blob(staged)
                group.create_task(self._send_from_memory(staged, staging.taken))
        return builder

    async def _add(self, staged: StagedNar, builder: PackBuilder, group: asyncio.TaskGroup) -> PackBuilder:
        """Add a small NAR to a pack; returns the current pack."""
        content = staged.read()
        staged.discard()
        if builder.add(staged.narinfo, content):
            return builder
        full = builder.finish()
        self._note_pack(full)
        await self._begin_pack(full, group)
        builder = builder.following()
        builder.add(staged.narinfo, content)
        return builder

    def _note_blob(self, staged: StagedNar) -> None:
        self._uploaded.narinfos.append(staged.narinfo)
        self._uploaded.blobs[staged.digest] = describe_nar(
            staged.digest, staged.narinfo.compression, staged.size
        )

    def _note_pack(self, pack: Pack) -> None:
        if pack.narinfos:
            self._uploaded.narinfos += pack.narinfos
            self._uploaded.blobs[pack.digest] = Descriptor(media_type.PACK, pack.digest, len(pack.content))

    async def _begin_pack(self, pack: Pack, group: asyncio.TaskGroup) -> None:
        if pack.narinfos:
            # Wait here, so that the number of packs in memory is bounded.
            await self._uploads.acquire()
            group.create_task(self._send_pack(pack))

    async def _send_pack(self, pack: Pack) -> None:
        try:
            await self._send(self._uploaded.blobs[pack.digest], pack.content)
        finally:
            self._uploads.release()

    async def _send_from_memory(self, staged: StagedNar, taken: int) -> None:
        try:
            await self._send_blob(staged)
        finally:
            await self._memory.give_back(taken)

    async def _send_blob(self, staged: StagedNar) -> None:
        try:
            async with self._uploads:
                await self._send(self._uploaded.blobs[staged.digest], staged.content)
        finally:
            staged.discard()

    async def _send(self, blob: Descriptor, content: bytes | Path) -> None:
        # Objects with the same content are sent once.
        async with self._sending[blob.digest]:
            if blob.digest in self._sent:
                return
            if not await has_blob(self._repository, blob):
                await self._repository.push_blob(blob.digest, content)
                self._pushing.sent(blob.size)
            self._sent.add(blob.digest)

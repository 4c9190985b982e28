"""Staging for an import: a compressed NAR of another cache is checked before it is sent.

FileHash and FileSize while it streams, then NarHash, NarSize and form by unpacking it as a stream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.cache.parallel import cancel_all, retrieve, run_in_thread
from nixcache_oci.clients.binary_cache.source import BinaryCache
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import Error, FormatError, StoreError, UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_check import can_unpack, check_nar
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.import_candidates import most_file_bytes
from nixcache_oci.publisher.staging import (
    Sink,
    StagedNar,
    StageNar,
    StagingStoppedError,
    check_size,
    opened_sink,
)
from nixcache_oci.wording import counted

_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0)
"""Before each retry of one NAR."""

_MOST_IN_A_ROW: Final = 5
"""Consecutive NARs that failed before the source counts as down."""


class CopyNarStager:
    """Stages NARs of another cache unchanged, so many at once; implements ``NarStager``."""

    def __init__(
        self,
        source: BinaryCache,
        narinfos: Mapping[StorePath, NarInfo],
        jobs: int,
        max_blob_bytes: int | None,
    ) -> None:
        self._source = source
        self._narinfos = narinfos
        self._jobs = asyncio.Semaphore(jobs)
        self._max_blob_bytes = max_blob_bytes
        self._failures_in_a_row = 0

    def checks(self, info: PathInfo) -> bool:
        """Hold those to it that can be unpacked."""
        return can_unpack(self._narinfos[info.store_path].compression)

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[StageNar]:
        """Stage while the block runs; then cancel what is still being fetched."""
        copies = set[asyncio.Task[StagedNar]]()
        self._failures_in_a_row = 0

        def begin(info: PathInfo) -> "asyncio.Future[StagedNar]":
            copy = asyncio.create_task(self._copy(self._narinfos[info.store_path], folder))
            copies.add(copy)
            copy.add_done_callback(retrieve)
            copy.add_done_callback(copies.discard)
            return copy

        try:
            yield begin
        finally:
            await cancel_all(copies)

    async def _copy(self, narinfo: NarInfo, folder: Path) -> StagedNar:
        async with self._jobs:
            try:
                staged = await self._fetch_patiently(narinfo, folder)
            except UpstreamNotFoundError as error:
                raise StoreError(f"{narinfo.store_path}: its NAR is missing: {error}") from None
            except UpstreamError as error:
                self._failures_in_a_row += 1
                if self._failures_in_a_row == _MOST_IN_A_ROW:
                    raise Error(f"{error}; run this again when it answers: it continues from there") from None
                raise StoreError(f"{narinfo.store_path}: its NAR cannot be fetched: {error}") from None
            except FormatError as error:
                raise StoreError(f"{narinfo.store_path}: {error}") from None
            self._failures_in_a_row = 0
            return staged

    async def _fetch_patiently(self, narinfo: NarInfo, folder: Path) -> StagedNar:
        """Fetch, with retries from the beginning."""
        for pause in _PAUSES_SECONDS:
            try:
                return await self._fetch(narinfo, folder)
            except UpstreamNotFoundError:
                raise
            except UpstreamError:
                await asyncio.sleep(pause)
        return await self._fetch(narinfo, folder)

    async def _fetch(self, narinfo: NarInfo, folder: Path) -> StagedNar:
        with opened_sink(narinfo, folder) as sink:
            await self._fetch_into(sink, narinfo)
        digest = Digest(sink.hasher.hexdigest())
        placed = replace(
            narinfo,
            url=str(NarUrl(digest, suffix=SUFFIXES[narinfo.compression])),
            file_hash=NixHash(sink.hasher.digest()),
            file_size=sink.size,
        )
        return StagedNar(placed, digest, sink.size, sink.content)

    async def _fetch_into(self, sink: Sink, narinfo: NarInfo) -> None:
        limit = most_file_bytes(narinfo) if narinfo.file_size is None else narinfo.file_size
        async with self._source.open_nar(narinfo.url) as chunks:
            async for chunk in chunks:
                if sink.size + len(chunk) > limit:
                    most = counted(limit, "byte")
                    raise FormatError(f"its file is larger than {most}, the most that it should have")
                await run_in_thread(sink.write, chunk)
                check_size(narinfo.store_path, self._max_blob_bytes, sink.size)
        file_hash = NixHash(sink.hasher.digest())
        if (file_hash, sink.size) != (narinfo.file_hash or file_hash, narinfo.file_size or sink.size):
            raise FormatError(f"its file does not match FileHash ({counted(sink.size, 'byte')}, {file_hash})")
        if sink.size == 0:
            raise FormatError("its file is empty")
        if can_unpack(narinfo.compression):
            sink.file.seek(0)
            await run_in_thread(check_nar, narinfo, sink.file, _going_on())


def _going_on() -> Callable[[], None]:
    """Return what raises on a thread once the task that waits for it is cancelled."""
    task = asyncio.current_task()

    def keep_going() -> None:
        if task is not None and task.cancelling():
            raise StagingStoppedError("nobody wants it any more")

    return keep_going

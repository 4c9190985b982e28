"""A repository that can be held up, a progress that remembers, and a look at what a run left behind."""

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.nar import File
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher import staging
from nixcache_oci.publisher.nar_upload import Upload, Uploaded, WhenStaged
from nixcache_oci.publisher.options import NarEncoding
from nixcache_oci.publisher.staging import StagedNar, StoreNarStager, stage
from tests.publisher.made_store import MadeStore
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.told import Told

_MOST_SECONDS = 60  # what takes longer hangs


class Blobs(ModelRepository):
    """Takes blobs, also out of files, and checks them.

    Attributes:
        steps: what was asked, in order.
        gate: while it is not set, what is pushed waits.
        hook: is awaited before each step.
    """

    def __init__(self) -> None:
        super().__init__(storage := ModelStorage(), self._note)
        self.blobs = storage.blobs
        self.steps: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.hook: Callable[[str], Awaitable[None]] | None = None

    async def _note(self, step: str) -> None:
        self.steps.append(step)
        if self.hook is not None:
            await self.hook(step)

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        await self.gate.wait()
        content = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        digest.check(content)
        await super().push_blob(digest, content)

    @property
    def pushed(self) -> list[str]:
        return [step for step in self.steps if step.startswith("push")]


class Story:
    """One store and one repository; every run has to leave no file, no thread and no complaint.

    Attributes:
        told: by the last run.
    """

    def __init__(self, folder: Path, repository: Repository | None = None) -> None:
        self.store = MadeStore(folder / "store")
        self.blobs = Blobs()
        self.told = Told()
        self.staging = folder / "staging"
        self.staging.mkdir()
        self._repository: Repository = repository or self.blobs
        self.complaints: list[str] = []

    def start(
        self,
        infos: Sequence[PathInfo],
        *,
        jobs: int = 2,
        max_blob_bytes: int | None = None,
        when_staged: WhenStaged | None = None,
    ) -> "asyncio.Task[Uploaded]":
        self.told = Told()
        nars = StoreNarStager(self.store.real_path, NarEncoding(), jobs, max_blob_bytes)
        upload = Upload(self._repository, nars, self.staging, jobs, self.told, max_blob_bytes)
        return asyncio.create_task(upload.run(infos, when_staged))

    async def run(
        self, infos: Sequence[PathInfo], *, jobs: int = 2, max_blob_bytes: int | None = None
    ) -> Uploaded:
        async with self.tidy(), asyncio.timeout(_MOST_SECONDS):
            return await self.start(infos, jobs=jobs, max_blob_bytes=max_blob_bytes)

    @asynccontextmanager
    async def tidy(self) -> AsyncIterator[None]:
        """Look behind what happens within: no file, no thread, no error that nobody was told of."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._complain)
        try:
            yield
        finally:
            assert staging_threads() == []
            assert list(self.staging.iterdir()) == []
            for _ in range(3):
                await asyncio.sleep(0)
                gc.collect()
            assert self.complaints == []
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append(str(context))

    def check(self, uploaded: Uploaded, infos: Sequence[PathInfo]) -> None:
        """Every object is found whole where its narinfo says, references first; nothing else lies there."""
        assert [narinfo.store_path for narinfo in uploaded.narinfos] == [info.store_path for info in infos]
        by_path = {info.store_path: info for info in infos}
        used: set[Digest] = set()
        for narinfo in uploaded.narinfos:
            url = NarUrl.parse(narinfo.url)
            content = self.blobs.blobs[url.blob]
            if url.offset is not None and url.length is not None:
                content = content[url.offset : url.offset + url.length]
            assert (narinfo.file_size, narinfo.compression) == (len(content), "zstd")
            nar = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            info = by_path[narinfo.store_path]
            assert Digest.of(nar).hex == info.nar_hash.digest_hex
            assert narinfo.references == info.references
            used.add(url.blob)
        assert used == set(uploaded.blobs)
        assert {blob: descriptor.size for blob, descriptor in uploaded.blobs.items()} == {
            blob: len(self.blobs.blobs[blob]) for blob in used
        }


class WatchedStage:
    """Stands in for ``stage``, and does its work.

    Attributes:
        running: how many threads stage at this moment.
        peak: the most that ever did.
        started: base names, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[PathInfo], object]) -> None:
        self._before = before
        self._lock = threading.Lock()
        self.running = 0
        self.peak = 0
        self.started: list[str] = []
        monkeypatch.setattr(staging, "stage", self._stage)

    def _stage(
        self,
        info: PathInfo,
        real_path: Path,
        folder: Path,
        encoding: NarEncoding,
        is_stopped: Callable[[], bool],
        max_blob_bytes: int | None,
    ) -> StagedNar:
        with self._lock:
            self.started.append(info.store_path.base_name)
            self.running += 1
            self.peak = max(self.peak, self.running)
        try:
            self._before(info)
            return stage(info, real_path, folder, encoding, is_stopped, max_blob_bytes)
        finally:
            with self._lock:
                self.running -= 1


def noise(seed: str, size: int) -> File:
    """Contents that do not compress."""
    return File(random.Random(seed).randbytes(size))


def small_ones(story: Story, count: int, size: int = 1000) -> list[PathInfo]:
    return [story.store.add(f"small-{number}", noise(str(number), size)) for number in range(count)]


def staging_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stage")]

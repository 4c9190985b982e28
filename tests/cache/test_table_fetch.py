"""Fetching tables onto the disk."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache import table_fetch, table_inflation
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, TableHeader, render_table
from nixcache_oci.cache.table_fetch import fetch_table, fetch_version1, keep_table
from nixcache_oci.cache.table_inflation import read_table
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.process import open_files_in
from tests.support.publish import CREATED, publish, publish_version1
from tests.support.slow_repository import SlowRepository

OBJECT = store_object("one")
HASH_PART = OBJECT.narinfo.store_path.hash_part
BLOB = zstandard.ZstdCompressor().compress(render_table(Table(TableHeader(CREATED), (), (OBJECT.narinfo,))))


@pytest.fixture
def folder(tmp_path: Path) -> IndexFolder:
    return IndexFolder(tmp_path / "index", "a cache")


def files(folder: IndexFolder) -> list[Path]:
    return list((folder.path / "tables").iterdir())


async def test_a_published_table_is_fetched(tmp_path: Path, folder: IndexFolder) -> None:
    """From a real repository; the next start finds it on disk."""
    layout = Layout(tmp_path / "cache")
    segment = await publish(layout, [OBJECT])
    fetched = await fetch_table(layout, folder, segment.table)
    for table in (fetched, folder.open_table(segment.table)):
        assert table is not None
        row = table.find(HASH_PART)
        assert row is not None
        assert NarInfo.parse(table.text(row)).store_path == OBJECT.narinfo.store_path
    with pytest.raises(NotFoundError):
        await fetch_table(layout, folder, Digest.of(b"nowhere"))


def test_a_table_that_was_pushed_is_kept(folder: IndexFolder) -> None:
    """As if it had been fetched, and checked alike."""
    digest = Digest.of(BLOB)
    with pytest.raises((DigestError, FormatError)):
        keep_table(folder, digest, BLOB[:-1] + b"x")
    assert files(folder) == []
    for table in (keep_table(folder, digest, BLOB), folder.open_table(digest)):
        assert table is not None
        assert table.find(HASH_PART) is not None


async def test_a_version_1_document_becomes_a_table(
    tmp_path: Path, folder: IndexFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept under the document's digest, so that it is converted once."""
    layout = Layout(tmp_path / "cache")
    await publish_version1(layout, [OBJECT])
    document = (await read_listing(layout)).version1
    assert document is not None
    await fetch_version1(layout, folder, document)
    table = folder.open_table(document)
    assert table is not None
    row = table.find(HASH_PART)
    assert row is not None
    url = NarUrl.parse(NarInfo.parse(table.text(row)).url)
    assert await layout.stat_blob(url.blob) == len(OBJECT.compressed()[1])
    assert caplog.records == []


async def test_wrong_bytes_are_no_table(folder: IndexFolder) -> None:
    """Nothing of them stays on disk."""
    repository = SlowRepository()
    digest = repository.add(BLOB)
    repository.blobs[digest] = BLOB[:-1] + b"x"
    with pytest.raises((DigestError, FormatError)):
        await fetch_table(repository, folder, digest)
    assert files(folder) == []


class HugeRepository(SlowRepository):
    """Says of every blob that it is huge, and notes whether it is read."""

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        async def chunks() -> AsyncIterator[bytes]:
            self.opened.append(digest)
            yield b""

        yield BlobStream(MAX_TABLE_BYTES + 1, start, end or MAX_TABLE_BYTES + 1, chunks())


async def test_a_blob_that_is_too_large_is_not_read(folder: IndexFolder) -> None:
    """A blob can inflate to nothing, too, and take for ever to download."""
    repository = HugeRepository()
    with pytest.raises(FormatError, match="limit"):
        await fetch_table(repository, folder, Digest.of(b""))
    assert repository.opened == []
    assert files(folder) == []


class SilentRepository(SlowRepository):
    """Never answers when it is asked for a blob."""

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        await asyncio.Event().wait()
        async with super().open_blob(digest, start, end) as blob:
            yield blob


async def test_a_table_is_not_waited_for_like_a_nar(
    folder: IndexFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a NAR's head Nix waits 300 s; an index that hangs on a table for as long is not refreshed."""
    for module in (table_fetch, table_inflation):
        monkeypatch.setattr(module, "TABLE_HEAD_SECONDS", 0.05)
    repository, digest = SilentRepository(), Digest.of(BLOB)
    for read in (
        lambda: fetch_table(repository, folder, digest),
        lambda: fetch_version1(repository, folder, digest),
        lambda: read_table(repository, digest),
    ):
        async with asyncio.timeout(10):
            with pytest.raises(RegistryError, match="no answer within") as caught:
                await read()
        assert caught.value.is_temporary
    assert files(folder) == []


class PausingRepository(SlowRepository):
    """Gives half of every blob, then waits for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = asyncio.Event()

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        content = self.blobs[digest][start:end]

        async def chunks() -> AsyncIterator[bytes]:
            yield content[: len(content) // 2]
            self.paused.set()
            await self.gate.wait()
            yield content[len(content) // 2 :]

        yield BlobStream(len(content), start, start + len(content), chunks())


@pytest.mark.parametrize("small_bytes", [0, len(BLOB)])
async def test_being_cancelled_leaves_nothing_behind(
    folder: IndexFolder, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy stops in the middle of a refresh; a small table is not even begun by then."""
    monkeypatch.setattr(table_fetch, "_SMALL_BYTES", small_bytes)
    repository = PausingRepository()
    repository.gate.clear()
    fetching = asyncio.create_task(fetch_table(repository, folder, repository.add(BLOB)))
    await repository.paused.wait()
    assert len(files(folder)) == (0 if small_bytes else 1)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert files(folder) == []
    assert open_files_in(folder.path) == []


async def test_a_small_table_is_inflated_in_its_turn(folder: IndexFolder) -> None:
    """Dozens are fetched at once, and each would take 8 MiB to inflate: until then they stay as they came."""
    repository = SlowRepository()
    seen: list[tuple[int, list[str]]] = []

    @asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        seen.append((repository.running, [path.suffix for path in files(folder)]))
        yield
        seen.append((repository.running, [path.suffix for path in sorted(files(folder))]))

    await fetch_table(repository, folder, repository.add(BLOB), turn=turn())
    assert seen == [(0, []), (0, [".keys", ".table"])]

"""Blobs in an OCI image layout folder."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.layout_story import CONTENT, DIGEST, LARGE, files_of
from tests.clients.registry_helper import read
from tests.support.process import open_files_in, until


async def test_blobs(layout: Repository, root: Path, tmp_path: Path) -> None:
    """A blob comes from memory or from a file, which stays as it is and is not shared."""
    await layout.push_blob(DIGEST, CONTENT)
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    file.chmod(0o600)
    large = Digest.of(LARGE)
    await layout.push_blob(large, file)
    assert file.stat().st_nlink == 1
    file.write_bytes(b"used for something else")
    assert await layout.stat_blob(DIGEST) == len(CONTENT)
    assert await layout.stat_blob(large) == len(LARGE)
    assert await read(layout, DIGEST) == CONTENT
    assert await read(layout, large) == LARGE
    await layout.push_blob(Digest.of(b""), b"")  # nothing is something, too
    assert await read(layout, Digest.of(b"")) == b""
    umask = os.umask(0)
    os.umask(umask)
    for path in (root / "blobs/sha256").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("start", "end"),
    [
        *((0, None), (0, 0), (0, 1), (5, None), (262_143, 262_145), (262_144, 524_288)),
        *((len(LARGE), None), (7, len(LARGE))),
    ],
)
async def test_ranges(layout: Repository, start: int, end: int | None) -> None:
    """A range gives exactly its bytes, in pieces that fit into a bounded memory."""
    digest = Digest.of(LARGE)
    await layout.push_blob(digest, LARGE)
    async with layout.open_blob(digest, start, end) as blob:
        pieces = [piece async for piece in blob.chunks]
    assert b"".join(pieces) == LARGE[start:end]
    assert (blob.size, blob.start, blob.end) == (len(LARGE), start, len(LARGE) if end is None else end)
    assert all(0 < len(piece) <= 524_288 for piece in pieces)


@pytest.mark.parametrize("is_file", [False, True])
async def test_wrong_bytes(layout: Repository, root: Path, tmp_path: Path, is_file: bool) -> None:
    """Bytes that are not what their digest says leave nothing behind."""
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    with pytest.raises(RegistryError, match=f"cannot write blob {DIGEST}: the bytes given have digest"):
        await layout.push_blob(DIGEST, file if is_file else LARGE)
    with pytest.raises(NotFoundError):
        await layout.stat_blob(DIGEST)
    assert files_of(root) == {"oci-layout", "index.json"}


async def test_source_that_is_missing(layout: Repository, root: Path, tmp_path: Path) -> None:
    """The error names the file; it must not look as if the repository lacked something."""
    with pytest.raises(RegistryError, match=r"No such file or directory.*gone") as caught:
        await layout.push_blob(DIGEST, tmp_path / "gone")
    assert not isinstance(caught.value, NotFoundError)
    assert files_of(root) == {"oci-layout", "index.json"}


async def test_blob_that_is_there(layout: Repository, root: Path) -> None:
    """A blob is written once; one that was cut short is replaced."""
    path = root / "blobs/sha256" / DIGEST.hex
    await layout.push_blob(DIGEST, CONTENT)
    before = path.stat().st_ino
    await layout.push_blob(DIGEST, CONTENT)
    assert path.stat().st_ino == before
    path.write_bytes(CONTENT[:-1])
    await layout.push_blob(DIGEST, CONTENT)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("start", "end"), [(-1, None), (0, 18), (18, None), (5, 4), (18, 18)])
async def test_ranges_outside(layout: Repository, start: int, end: int | None) -> None:
    """A range that the blob does not have is an error, never fewer bytes than asked for."""
    await layout.push_blob(DIGEST, CONTENT)
    with pytest.raises(RegistryError, match=r"has 17 bytes, but no range"):
        await read(layout, DIGEST, start, end)


async def test_blob_cut_while_read(layout: Repository, root: Path) -> None:
    """A file that shrinks under the reader is an error, never a shorter blob."""
    digest = Digest.of(LARGE)
    await layout.push_blob(digest, LARGE)
    async with layout.open_blob(digest) as blob:
        await anext(blob.chunks)
        os.truncate(root / "blobs/sha256" / digest.hex, 300_000)
        # The second piece is read ahead: before it, in it or behind it.
        with pytest.raises(RegistryError, match=r"ended at byte (524288|1048576) "):
            _ = [piece async for piece in blob.chunks]


async def test_blob_removed_while_read(layout: Repository, root: Path) -> None:
    """A blob that is being read can be read to its end, whatever gc does."""
    digest = Digest.of(LARGE)
    await layout.push_blob(digest, LARGE)
    async with layout.open_blob(digest) as blob:
        first = await anext(blob.chunks)
        (root / "blobs/sha256" / digest.hex).unlink()
        assert first + b"".join([piece async for piece in blob.chunks]) == LARGE


async def test_readers_that_leave(layout: Repository, root: Path) -> None:
    """Whoever stops reading, or is cancelled, leaves no file open."""
    digest = Digest.of(LARGE)
    await layout.push_blob(digest, LARGE)

    async def read_it() -> None:
        async with layout.open_blob(digest) as blob:
            async for _ in blob.chunks:
                await asyncio.sleep(0)

    async with layout.open_blob(digest) as blob:
        await anext(blob.chunks)
    for steps in range(8):
        task = asyncio.create_task(read_it())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not open_files_in(root))  # a thread may still be opening one

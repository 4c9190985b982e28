"""No part of a file is sent before the whole of it was found to be what its digest says."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_file import LayoutFile
from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy import keys
from nixcache_oci.proxy.file_check import MAX_CHECKS, FileChecks
from nixcache_oci.proxy.quarantine import Quarantine
from tests.support.front import Bench, make_bench
from tests.support.objects import store_object
from tests.support.process import open_files_in, until
from tests.support.publish import publish

CONTENT = os.urandom(5_000_001)
DIGEST = Digest.of(CONTENT)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    layout = Layout(tmp_path / "cache")
    await publish(layout, [store_object("one")])
    await layout.push_blob(DIGEST, CONTENT)
    async with make_bench(tmp_path) as bench:
        yield bench


def blob_of(folder: Path, digest: Digest = DIGEST) -> Path:
    return folder / "cache/blobs/sha256" / digest.hex


async def ask(bench: Bench, wanted: str = "", digest: Digest = DIGEST) -> tuple[bytes, bytes]:
    """Give head and body of the answer."""
    field = f"Range: {wanted}\r\n" if wanted else ""
    request = f"GET /nar/{digest.hex}.nar.zst HTTP/1.1\r\nHost: localhost\r\n{field}Connection: close\r\n\r\n"
    async with bench.connect() as client:
        await client.send(request.encode())
        head, _, body = (await client.expect_end()).partition(b"\r\n\r\n")
        return head, body


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=1-", 1, len(CONTENT)), ("bytes=0-0", 0, 1), ("bytes=-7", len(CONTENT) - 7, len(CONTENT))],
)
async def test_a_part_of_a_right_file_is_sent(bench: Bench, wanted: str, start: int, end: int) -> None:
    """Exactly the bytes that were asked for, as often as they are asked for."""
    for _ in range(2):
        head, body = await ask(bench, wanted)
        assert head.startswith(b"HTTP/1.1 206 ")
        assert f"Content-Range: bytes {start}-{end - 1}/{len(CONTENT)}".encode() in head
        assert body == CONTENT[start:end]


@pytest.mark.parametrize("wanted", ["bytes=1-", "bytes=0-0", "bytes=-1", "bytes=2000000-2000009"])
async def test_no_part_of_a_wrong_file_is_sent(bench: Bench, tmp_path: Path, wanted: str) -> None:
    """One wrong byte, anywhere, is enough: it is not there, nor for who wants the whole."""
    wrong = bytearray(CONTENT)
    wrong[3_000_000] ^= 1
    blob_of(tmp_path).write_bytes(wrong)
    head, body = await ask(bench, wanted)
    assert head.startswith(b"HTTP/1.1 404 ")
    assert body == b"Not Found\n"
    assert DIGEST in bench.app[keys.NARS]._quarantine
    head, body = await ask(bench)
    assert head.startswith(b"HTTP/1.1 404 ")
    assert not open_files_in(tmp_path / "cache")


async def test_what_was_right_is_hashed_again_when_it_changed(bench: Bench, tmp_path: Path) -> None:
    """Also where it has its old size and time: only the kernel sets the time of a change."""
    assert (await ask(bench, "bytes=0-3"))[1] == CONTENT[:4]
    path = blob_of(tmp_path)
    before = path.stat()
    await asyncio.sleep(0.02)  # a tick of the clock by which the kernel tells changes apart
    with path.open("r+b") as file:
        file.write(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    head, body = await ask(bench, "bytes=0-3")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"evil" not in body


@pytest.mark.parametrize("wanted", ["", "bytes=1-"])
async def test_nothing_of_a_file_with_a_second_name_is_sent_unless_it_is_right(
    bench: Bench, tmp_path: Path, wanted: str
) -> None:
    """A hard link is no link that could be refused: it may be to a secret, or to a backup of the cache."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret " * 1_000_000)
    odd = Digest.of(b"another thing")
    blob_of(tmp_path, odd).hardlink_to(secret)
    head, body = await ask(bench, wanted, odd)
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in body
    (tmp_path / "backup").hardlink_to(blob_of(tmp_path))
    assert (await ask(bench, wanted))[1] == CONTENT[1 if wanted else 0 :]


class Gated(LayoutFile):
    """A file that is read when the test says so, and counts what is read."""

    gate = threading.Event()
    reads = 0

    def read(self, start: int, end: int) -> bytes:
        type(self).reads += 1
        assert self.gate.wait(30)
        return super().read(start, end)

    def duplicate(self) -> "Gated":
        return Gated(os.dup(self.fileno()), nullcontext)


@contextmanager
def gated(path: Path, content: bytes) -> Iterator[Gated]:
    path.write_bytes(content)
    Gated.gate.clear()
    Gated.reads = 0
    file = Gated(os.open(path, os.O_RDONLY), nullcontext)
    try:
        yield file
    finally:
        Gated.gate.set()
        file.close()


async def test_whoever_asks_meanwhile_shares_the_work(tmp_path: Path) -> None:
    """And later ones cost nothing. The first may hang up, and close its file, without harm to the others."""
    checks = FileChecks(Quarantine())
    with gated(tmp_path / "blob", b"right") as first:
        second = Gated(os.dup(first.fileno()), nullcontext)
        tasks = [
            asyncio.create_task(checks.check(Digest.of(b"right"), file)) for file in (first, second, second)
        ]
        await until(lambda: Gated.reads)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        Gated.gate.set()
        await asyncio.gather(*tasks[1:])
        await checks.check(Digest.of(b"right"), second)
        assert Gated.reads == 1
        with pytest.raises(DigestError):
            await checks.check(Digest.of(b"other"), second)
        second.close()


async def test_what_nobody_waits_for_ends(tmp_path: Path) -> None:
    """No thread reads on, no file stays open, and the next one begins anew."""
    checks = FileChecks(Quarantine())
    with gated(tmp_path / "blob", b"right") as file:
        task = asyncio.create_task(checks.check(Digest.of(b"right"), file))
        await until(lambda: Gated.reads)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        Gated.gate.set()
        await until(lambda: len(open_files_in(tmp_path)) == 1)
        await checks.check(Digest.of(b"right"), file)
        assert Gated.reads == 2
    assert not open_files_in(tmp_path)


async def test_checks_are_bounded(tmp_path: Path) -> None:
    """Whoever asks for parts of everything is refused, and holds neither files nor threads without end."""
    checks = FileChecks(Quarantine())
    with gated(tmp_path / "blob", b"right") as file:
        tasks = [
            asyncio.create_task(checks.check(Digest.of(b"%d" % number), file)) for number in range(MAX_CHECKS)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RegistryError, match=f"{MAX_CHECKS} other files are being checked"):
            await checks.check(Digest.of(b"right"), file)
        assert len(open_files_in(tmp_path)) == MAX_CHECKS + 1
        await until(lambda: Gated.reads)
        closing = asyncio.create_task(checks.close())
        await asyncio.sleep(0)
        Gated.gate.set()
        await closing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await checks.check(Digest.of(b"right"), file)
        assert len(open_files_in(tmp_path)) == 1

"""NARs out of a layout: a part of a file is sent once the whole of it is known to be right."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy import app_keys
from tests.support.front import Bench, make_bench
from tests.support.objects import store_object
from tests.support.process import open_files_in, until
from tests.support.publish import publish

CONTENT = os.urandom(9_000_001)  # more than sockets hold
DIGEST = Digest.of(CONTENT)
NAR = f"GET /nar/{DIGEST.hex}.nar.zst HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


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
    assert DIGEST in bench.cache.nars._quarantine
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


@pytest.mark.parametrize("taken", [0, 3_000_000])
async def test_a_client_that_goes_away(bench: Bench, tmp_path: Path, taken: int) -> None:
    """While it is written to, or waited for: no file stays open, and nobody is accused."""
    async with bench.connect() as client:
        await client.send(NAR)
        await client.expect_bytes(taken)
        await until(lambda: open_files_in(tmp_path / "cache"))
    await until(lambda: not open_files_in(tmp_path / "cache"))
    assert bench.app[app_keys.COUNTERS].nars_cut == 0
    assert DIGEST not in bench.cache.nars._quarantine


@pytest.mark.parametrize("place", [0, len(CONTENT) // 2, len(CONTENT) - 1])
async def test_of_wrong_bytes_the_end_is_missing(bench: Bench, tmp_path: Path, place: int) -> None:
    """One is enough; and then the blob is not there any more."""
    wrong = bytearray(CONTENT)
    wrong[place] ^= 1
    blob_of(tmp_path).write_bytes(wrong)
    async with bench.connect() as client:
        await client.send(NAR + NAR)
        received = await client.expect_end()
    assert len(received) < len(CONTENT)
    assert received.count(b"HTTP/1.1") == 1
    assert bench.app[app_keys.COUNTERS].nars_cut == 1
    async with bench.connect() as client:
        await client.send(NAR)
        assert (await client.expect(1)).startswith(b"HTTP/1.1 404 ")

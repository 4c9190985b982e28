"""A NAR out of a local file goes past this process: order, ends, troubles and memory are as of any other."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy import keys
from tests.support.front import Bench, make_bench
from tests.support.front_requests import LAST
from tests.support.objects import hash_part_of, store_object
from tests.support.process import open_files_in, until
from tests.support.publish import publish

CONTENT = os.urandom(9_000_001)  # several parts; more than sockets hold
DIGEST = Digest.of(CONTENT)
NAR = f"GET /nar/{DIGEST.hex}.nar.zst HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
NARINFO = f"GET /{hash_part_of('one')}.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    layout = Layout(tmp_path / "cache")
    await publish(layout, [store_object("one")])
    await layout.push_blob(DIGEST, CONTENT)
    async with make_bench(tmp_path) as bench:
        yield bench


def blob_of(folder: Path) -> Path:
    return folder / "cache/blobs/sha256" / DIGEST.hex


async def test_answers_before_and_behind_it_keep_their_order(bench: Bench) -> None:
    """What is still to be written when its first part is at hand goes first."""
    async with bench.connect() as client:
        await client.send(NARINFO + NAR + NAR + NARINFO + LAST)
        received = await client.expect_end()
    first, second, third, fourth, last = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b"StorePath" in first
    for nar in (second, third):
        head, _, body = nar.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(CONTENT)}".encode() in head
        assert body == CONTENT
    assert b"StorePath" in fourth
    assert last.endswith(b"ok\n")
    assert bench.app[keys.COUNTERS].nar_bytes == 2 * len(CONTENT)


async def test_what_was_written_goes_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client has not read it yet, it still lies in the transport."""
    sendfile, waiting = os.sendfile, list[int]()

    def look(out_fd: int, in_fd: int, offset: int, count: int) -> int:
        waiting.append(front._transport.get_write_buffer_size())
        return sendfile(out_fd, in_fd, offset, count)

    monkeypatch.setattr(os, "sendfile", look)
    async with bench.connect() as client:
        [front] = bench.connections
        while not front._transport.get_write_buffer_size():
            await client.send(NARINFO * 20)
        await client.send(NAR + LAST)
        await asyncio.sleep(0.1)
        assert waiting == []
        received = await client.expect_end()
    assert received.rindex(b"StorePath") < received.index(CONTENT)
    assert set(waiting) == {0}


async def test_a_slow_client_takes_neither_memory_nor_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has not read is the kernel's, and nothing runs until it reads."""
    sendfile, calls = os.sendfile, list[int]()

    def count_calls(out_fd: int, in_fd: int, offset: int, count: int) -> int:
        calls.append(offset)
        return sendfile(out_fd, in_fd, offset, count)

    monkeypatch.setattr(os, "sendfile", count_calls)
    async with bench.connect() as client:
        [front] = bench.connections
        await client.send(NAR)
        await until(lambda: calls)
        await asyncio.sleep(0.1)
        assert front._transport.get_write_buffer_size() == 0
        assert bench.app[keys.COUNTERS].nar_bytes < len(CONTENT)
        assert front._transport.get_write_buffer_limits()[1] > 0
        assert len(calls) < 10
        await client.send(LAST)
        assert CONTENT in await client.expect_end()


@pytest.mark.parametrize("taken", [0, 3_000_000])
async def test_a_client_that_goes_away(bench: Bench, tmp_path: Path, taken: int) -> None:
    """While it is written to, or waited for: no file stays open, and nobody is accused."""
    async with bench.connect() as client:
        await client.send(NAR)
        await client.expect_bytes(taken)
        await until(lambda: open_files_in(tmp_path / "cache"))
    await until(lambda: not open_files_in(tmp_path / "cache"))
    assert bench.app[keys.COUNTERS].nars_cut == 0
    assert DIGEST not in bench.app[keys.NARS]._quarantine


@pytest.mark.parametrize("place", [0, len(CONTENT) // 2, len(CONTENT) - 1])
async def test_of_wrong_bytes_the_end_is_missing(bench: Bench, tmp_path: Path, place: int) -> None:
    """One is enough; and then the blob is not there any more."""
    wrong = bytearray(CONTENT)
    wrong[place] ^= 1
    blob_of(tmp_path).write_bytes(wrong)
    async with bench.connect() as client:
        await client.send(NAR + NARINFO)
        received = await client.expect_end()
    assert len(received) < len(CONTENT)
    assert b"StorePath" not in received
    assert bench.app[keys.COUNTERS].nars_cut == 1
    async with bench.connect() as client:
        await client.send(NAR)
        assert (await client.expect(1)).startswith(b"HTTP/1.1 404 ")


async def test_a_file_that_shrinks_while_it_is_sent(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was hashed is gone: the answer is cut, and nobody waits for ever."""
    sendfile = os.sendfile

    def shrink(out_fd: int, in_fd: int, offset: int, count: int) -> int:
        os.truncate(blob_of(tmp_path), 0)
        return sendfile(out_fd, in_fd, offset, count)

    monkeypatch.setattr(os, "sendfile", shrink)
    async with bench.connect() as client:
        await client.send(NAR)
        received = await client.expect_end()
    assert len(received) < 1000
    assert bench.app[keys.COUNTERS].nars_cut == 1

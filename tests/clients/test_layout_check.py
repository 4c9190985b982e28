"""Hashing a layout's files: shared, bounded, and ended when nobody waits."""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from nixcache_oci.clients.layout_file import MAX_CHECKS, FileChecks, LayoutFile
from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.oci.digest import Digest
from tests.support.process import open_files_in, until


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
    checks = FileChecks()
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
    checks = FileChecks()
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
    checks = FileChecks()
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

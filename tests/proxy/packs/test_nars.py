"""Small NARs in blobs of their own are fetched ahead, as packs are."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.errors import DigestError, NotFoundError, RegistryError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs import memory, prefetcher
from nixcache_oci.proxy.packs.prefetch import MAX_NAR_BYTES
from tests.support.objects import store_object
from tests.support.process import until
from tests.support.slow_repository import AT_ONCE, NarBench

CONTENT = b"a compressed NAR"


class Bench(NarBench):
    """Blobs and their narinfos."""

    def add(self, content: bytes, size: int | None = None) -> NarInfo:
        """Put a NAR in; its FileSize may be another than its size."""
        blob = self.repository.add(content)
        return replace(
            store_object("object").narinfo,
            url=str(NarUrl(blob, suffix=".zst")),
            compression="zstd",
            file_hash=NixHash(hashlib.sha256(content).digest()),
            file_size=len(content) if size is None else size,
        )

    def serve(self, narinfo: NarInfo) -> Digest:
        """Do what is done when a narinfo is served; gives the blob that it names."""
        self.packs.prefetch_for(narinfo.render().encode())
        return NarUrl.parse(narinfo.url).blob

    async def read(self, blob: Digest) -> bytes:
        """Ask for a whole NAR."""
        async with self.nars.whole(blob) as (size, chunks):
            content = b"".join([chunk async for chunk in chunks])
        assert size == len(content)
        return content

    async def come(self) -> None:
        """Wait until nothing is on its way."""
        await until(lambda: not self.packs._prefetcher._in_transit)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.close()


async def test_it_is_there_when_it_is_asked_for(bench: Bench) -> None:
    """One request serves its size, all of it and a part, each of which would cost one of its own."""
    blob = bench.serve(bench.add(CONTENT))
    await bench.come()
    assert bench.nars.cached(NarUrl(blob)) == memoryview(CONTENT)
    assert await bench.nars.size(blob) == len(CONTENT)
    assert await bench.read(blob) == CONTENT
    async with bench.nars.part(blob, 2, 12) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == CONTENT[2:12]
    assert bench.repository.opened == [blob]
    assert bench.counters.nars_fetched_ahead == 1


async def test_a_client_waits_for_what_is_on_its_way(bench: Bench) -> None:
    """Any number of them share the download; nothing that is not verified is at hand meanwhile."""
    bench.repository.gate.clear()
    bench.repository.before_gate = 4
    blob = bench.serve(bench.add(CONTENT))
    clients = [asyncio.create_task(bench.read(blob)) for _ in range(3)]
    await until(lambda: bench.repository.at_gate)
    assert bench.nars.cached(NarUrl(blob)) is None
    clients.pop().cancel()
    bench.repository.gate.set()
    assert await asyncio.gather(*clients) == [CONTENT] * 2
    assert bench.repository.opened == [blob]


async def test_what_has_no_turn_yet_is_streamed_when_it_is_asked_for(bench: Bench) -> None:
    """A client never waits for guesses, and what it had is not fetched for it again."""
    bench.repository.gate.clear()
    blobs = [bench.serve(bench.add(b"%d" % number)) for number in range(AT_ONCE + 2)]
    await until(lambda: bench.repository.at_gate == AT_ONCE)
    assert bench.repository.opened == blobs[:AT_ONCE]
    client = asyncio.create_task(bench.read(blobs[-1]))
    await until(lambda: bench.repository.opened[AT_ONCE:] == [blobs[-1]])
    bench.repository.gate.set()
    assert await client == b"%d" % (AT_ONCE + 1)
    await bench.come()
    await until(lambda: len(bench.repository.opened) == len(blobs))
    assert sorted(bench.repository.opened) == sorted(blobs)


@pytest.mark.parametrize(
    ("size", "is_fetched"), [(0, True), (MAX_NAR_BYTES - 1, True), (MAX_NAR_BYTES, False)]
)
async def test_only_what_is_small_is_fetched(bench: Bench, size: int, *, is_fetched: bool) -> None:
    """A large NAR is streamed: it would wait for all of itself."""
    blob = bench.serve(bench.add(CONTENT, size))
    await bench.come()
    assert bench.repository.opened == ([blob] if is_fetched else [])


async def test_one_whose_size_nobody_tells_is_not_fetched(bench: Bench) -> None:
    """It may be of any size."""
    bench.serve(replace(bench.add(CONTENT), file_size=None))
    await bench.come()
    assert bench.repository.opened == []


async def test_one_that_is_larger_than_it_says(bench: Bench) -> None:
    """Nothing of it is read ahead; the client has it as a stream."""
    content = bytes(MAX_NAR_BYTES + 1)
    blob = bench.serve(bench.add(content, size=10))
    await bench.come()
    assert bench.packs.used_bytes == 0
    assert await bench.read(blob) == content


async def test_what_it_counts_for_is_what_it_takes(bench: Bench) -> None:
    """Any number of tiny NARs has no more memory than there may be."""
    bench.serve(bench.add(bytes(100_000), size=200_000))
    await bench.come()
    assert bench.packs.used_bytes == 100_000
    bench.serve(bench.add(b""))
    await bench.come()
    assert bench.packs.used_bytes == 100_000 + memory._ENTRY_BYTES


async def test_a_wrong_one_is_refused(bench: Bench) -> None:
    """It is in quarantine before anybody has a byte of it."""
    narinfo = bench.add(CONTENT)
    blob = NarUrl.parse(narinfo.url).blob
    bench.repository.blobs[blob] = b"something else"
    bench.repository.gate.clear()
    bench.serve(narinfo)
    client = asyncio.create_task(bench.read(blob))
    await until(lambda: bench.repository.at_gate)
    bench.repository.gate.set()
    with pytest.raises(DigestError):
        await client
    with pytest.raises(NotFoundError):
        await bench.read(blob)
    assert bench.nars.cached(NarUrl(blob)) is None
    assert bench.repository.opened == [blob]


async def test_a_guess_that_failed_costs_the_client_nothing(bench: Bench) -> None:
    """Who waited for it has an attempt of its own."""
    bench.repository.gate.clear()
    bench.repository.broken = RegistryError("gone", status=400)
    blob = bench.serve(bench.add(CONTENT))
    client = asyncio.create_task(bench.read(blob))
    await until(lambda: bench.repository.at_gate)
    bench.repository.gate.set()  # for those who wait now
    bench.repository.gate.clear()
    await until(lambda: bench.repository.at_gate == 2)
    bench.repository.broken = None
    bench.repository.gate.set()
    assert await client == CONTENT
    assert bench.repository.opened == [blob] * 2


async def test_a_crawl_does_not_download_the_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays unread pauses the rest; reading one lets two more come."""
    monkeypatch.setattr(memory, "_PREFETCH_SHARE", 2**28 // (3 * 5000))  # so there is room for three
    blobs = [bench.serve(bench.add(bytes([number]) * 5000)) for number in range(10)]
    await bench.come()
    assert bench.repository.opened == blobs[:3]
    await bench.read(blobs[0])
    await bench.come()
    assert bench.repository.opened == blobs[:5]


async def test_no_more_wait_than_are_of_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no place is forgotten, and streamed."""
    monkeypatch.setattr(prefetcher, "_MOST_WANTED", 2)
    bench.repository.gate.clear()
    blobs = [bench.serve(bench.add(b"%d" % number)) for number in range(AT_ONCE + 5)]
    bench.repository.gate.set()
    await bench.come()
    await until(lambda: len(bench.repository.opened) == AT_ONCE + 2)
    await bench.come()
    assert bench.repository.opened == blobs[: AT_ONCE + 2]


async def test_closing_begins_nothing(bench: Bench) -> None:
    """Where one ends, the next has its turn, but not then."""
    bench.repository.gate.clear()
    for number in range(AT_ONCE + 5):
        bench.serve(bench.add(b"%d" % number))
    await until(lambda: bench.repository.at_gate == AT_ONCE)
    await bench.packs.close()
    assert len(bench.repository.opened) == AT_ONCE
    assert len(asyncio.all_tasks()) == 1

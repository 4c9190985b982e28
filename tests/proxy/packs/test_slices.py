"""Slices of packs that are still on their way: given as soon as they are here and right by themselves."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.pack import Pack, PackBuilder
from nixcache_oci.errors import DigestError, NotFoundError, RegistryError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.proxy.packs import prefetcher
from tests.support.objects import store_object
from tests.support.process import until
from tests.support.slow_repository import NarBench

_NARS = [store_object(f"{number}", contents=bytes([number]) * 1000) for number in range(3)]


def _pack() -> Pack:
    builder = PackBuilder()
    for one in _NARS:
        builder.add(replace(one.narinfo, file_hash=NixHash(hashlib.sha256(one.nar).digest())), one.nar)
    return builder.finish()


PACK = _pack()
URLS = [NarUrl.parse(narinfo.url) for narinfo in PACK.narinfos]
FIRST, SECOND, LAST = URLS


class Bench(NarBench):
    """A pack whose first NAR comes at once, and the rest when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.repository.gate.clear()
        self.repository.before_gate = SECOND.offset or 0
        self.repository.blobs[PACK.digest] = PACK.content

    def serve(self, *narinfos: NarInfo) -> None:
        """Do what is done when narinfos are served."""
        for narinfo in narinfos:
            self.packs.prefetch_for(narinfo.render().encode())

    def ask(self, url: NarUrl) -> asyncio.Task[bytes]:
        """Ask for a NAR."""
        return asyncio.create_task(self.nars.slice_of_pack(url))

    async def come(self) -> None:
        """Wait until all is here that comes without the gate."""
        await until(lambda: self.repository.at_gate)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(prefetcher, "_MOST_RANGES_BEFORE_NARS", 0)  # so that all is one range
    bench = Bench()
    yield bench
    await bench.close()


async def test_a_slice_waits_for_no_more_than_itself(bench: Bench) -> None:
    """The client has it while the rest of the pack is on its way; so has the next one, without waiting."""
    bench.serve(*PACK.narinfos)
    assert await asyncio.wait_for(bench.ask(FIRST), 10) == _NARS[0].nar
    assert bench.nars.cached(FIRST) == memoryview(_NARS[0].nar)
    assert bench.nars.cached(SECOND) is None
    assert bench.repository.running == 1
    assert bench.counters.packs_fetched == 0


async def test_each_slice_is_given_when_it_comes(bench: Bench) -> None:
    """Those who wait are woken by their own bytes, and one that gives up stops no other."""
    bench.serve(*PACK.narinfos)
    second, third, given_up = bench.ask(SECOND), bench.ask(LAST), bench.ask(SECOND)
    await bench.come()
    assert not second.done()
    given_up.cancel()
    bench.repository.gate.set()
    nars = list(await asyncio.wait_for(asyncio.gather(second, third), 10))
    assert nars == [_NARS[1].nar, _NARS[2].nar]
    assert bench.repository.opened == [PACK.digest]


async def test_where_nobody_told_a_hash_the_whole_pack_is_waited_for(bench: Bench) -> None:
    """As where a client remembers the narinfo from another day; or where it tells no FileHash."""
    bench.serve(replace(PACK.narinfos[0], file_hash=None), PACK.narinfos[1])
    asking = bench.ask(FIRST)
    await bench.come()
    assert bench.nars.cached(FIRST) is None
    assert not asking.done()
    bench.repository.gate.set()
    assert await asyncio.wait_for(asking, 10) == _NARS[0].nar


async def test_a_slice_that_is_wrong_is_not_given(bench: Bench) -> None:
    """Neither before the pack is found to be wrong, nor then."""
    bench.repository.blobs[PACK.digest] = b"x" + PACK.content[1:]
    bench.serve(*PACK.narinfos)
    asking = bench.ask(FIRST)
    await bench.come()
    assert bench.nars.cached(FIRST) is None
    assert not asking.done()
    bench.repository.gate.set()
    with pytest.raises(DigestError):
        await asyncio.wait_for(asking, 10)


async def test_what_was_given_is_right_where_the_rest_is_not(bench: Bench) -> None:
    """The pack is in quarantine then, and nothing more is given of it."""
    bench.repository.blobs[PACK.digest] = PACK.content[:-1] + b"x"
    bench.serve(*PACK.narinfos)
    assert await asyncio.wait_for(bench.ask(FIRST), 10) == _NARS[0].nar
    last = bench.ask(LAST)
    await bench.come()
    bench.repository.gate.set()
    with pytest.raises(DigestError):
        await asyncio.wait_for(last, 10)
    assert bench.nars.cached(FIRST) is None
    with pytest.raises(NotFoundError):
        await bench.nars.slice_of_pack(FIRST)


async def test_a_hash_that_is_wrong_keeps_nothing_back(bench: Bench) -> None:
    """The pack's digest is what counts: as soon as it is found right, its slices are."""
    bench.serve(replace(PACK.narinfos[0], file_hash=NixHash(bytes(32))))
    asking = bench.ask(FIRST)
    await bench.come()
    assert bench.nars.cached(FIRST) is None
    bench.repository.gate.set()
    assert await asyncio.wait_for(asking, 10) == _NARS[0].nar


async def test_a_download_that_fails_wakes_those_who_wait(bench: Bench) -> None:
    """With its error."""
    bench.repository.broken = RegistryError("the registry is gone")
    bench.serve(*PACK.narinfos)
    asking = bench.ask(LAST)
    await bench.come()
    bench.repository.gate.set()
    with pytest.raises(RegistryError, match="is gone"):
        await asyncio.wait_for(asking, 10)


async def test_a_slice_that_lies_in_no_pack(bench: Bench) -> None:
    """A table may say what it likes: nobody waits for bytes behind the end of the pack."""
    beyond = replace(LAST, offset=len(PACK.content) - 1, length=2)
    bench.serve(replace(PACK.narinfos[0], url=str(beyond)))
    asking = bench.ask(beyond)
    await bench.come()
    bench.repository.gate.set()
    with pytest.raises(Exception, match="are outside its"):
        await asyncio.wait_for(asking, 10)


async def test_closing_wakes_those_who_wait(bench: Bench) -> None:
    """Whether the download has begun, or not even that."""
    bench.serve(*PACK.narinfos)
    not_begun = bench.ask(LAST)
    await asyncio.sleep(0)
    await bench.packs.close()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(not_begun, 10)


async def test_what_is_here_is_not_remembered(bench: Bench) -> None:
    """Narinfos that are asked for when their packs are in memory cost nothing more."""
    bench.repository.gate.set()
    assert await asyncio.wait_for(bench.ask(FIRST), 10) == _NARS[0].nar
    bench.serve(*PACK.narinfos)
    assert len(bench.packs._hashes._hashes) == 0

"""Look-ups: hit, miss and unknown are told apart, and each is counted as what it is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.upstream.address import Chain
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy import lookup
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import LookUpResult, LoopFinder, UpstreamFinder, Verdict, look_up
from nixcache_oci.proxy.signature_union import SignatureUnion
from tests.support.front import let_run, open_cache
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish
from tests.support.upstream_server import HASH_PART, answering, asking, narinfo_text, refusing, serve


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[LiveIndex]:
    """An index over a cache that holds one object."""
    layout = Layout(tmp_path / "cache")
    await publish(layout, [store_object("here")])
    index = LiveIndex(layout, IndexFolder(tmp_path / "index", layout.name), (), 300, Counters())
    await index.refresh(thoroughly=True)
    yield index
    await index.close()


@pytest.fixture
async def no_index(tmp_path: Path) -> LiveIndex:
    """An index that nobody ever had; its deadline is over."""
    layout = Layout(tmp_path / "nowhere")
    return LiveIndex(layout, IndexFolder(tmp_path / "index", layout.name), (), 300, Counters())


async def ask(indexes: list[LiveIndex], upstreams: LoopFinder, counters: Counters) -> LookUpResult:
    """Look for what the upstreams of these tests have."""
    caches = [open_cache(index) for index in indexes]
    return await look_up(HASH_PART, caches, upstreams, counters, SignatureUnion(upstreams, ()))


def counted(counters: Counters) -> tuple[int, int, int, int]:
    return counters.hits, counters.upstream_hits, counters.misses, counters.unknown


async def test_what_is_here_is_a_hit_and_no_upstream_is_asked(index: LiveIndex) -> None:
    """A hit costs no network."""
    counters = Counters()
    async with asking(refusing()) as upstreams:
        cache = open_cache(index)
        union = SignatureUnion(upstreams, ())
        found = await look_up(hash_part_of("here"), [cache], upstreams, counters, union)
        assert upstreams.health()[0].failures == 0
    assert found.verdict is Verdict.HIT
    assert found.narinfo is not None
    assert NarInfo.parse(found.narinfo).store_path.hash_part == hash_part_of("here")
    assert counted(counters) == (0, 0, 0, 0)
    assert counted(cache.counters) == (1, 0, 0, 0)


async def test_what_an_upstream_has_is_an_upstream_hit(index: LiveIndex, no_index: LiveIndex) -> None:
    """With an index or without one; and its URL leads through here."""
    counters = Counters()
    async with serve(answering(text=narinfo_text())) as url, asking(url, refusing()) as upstreams:
        for each in (index, no_index):
            found = await look_up(
                HASH_PART, [open_cache(each)], upstreams, counters, SignatureUnion(upstreams, ())
            )
            assert found.verdict is Verdict.UPSTREAM_HIT
            assert found.narinfo is not None
            assert NarInfo.parse(found.narinfo).url.startswith("upstream/")
    assert counted(counters) == (0, 2, 0, 0)


async def test_a_miss_is_what_everybody_denies(index: LiveIndex) -> None:
    """This cache and each upstream said so themselves."""
    counters = Counters()
    async with serve(answering(status=404)) as url, asking(url) as upstreams:
        assert (await ask([index], upstreams, counters)).verdict is Verdict.MISS
    async with asking() as upstreams:
        assert (await ask([index], upstreams, counters)).verdict is Verdict.MISS
    assert counted(counters) == (0, 0, 2, 0)


async def test_who_could_not_be_asked_makes_it_unknown(index: LiveIndex, no_index: LiveIndex) -> None:
    """An upstream that is dead, or no index at all: nobody knows, and nobody says no."""
    counters = Counters()
    async with serve(answering(status=404)) as url:
        async with asking(url, refusing()) as upstreams:
            assert (await ask([index], upstreams, counters)).verdict is Verdict.UNKNOWN
        async with asking(url) as upstreams:
            assert (
                await look_up(
                    HASH_PART, [open_cache(no_index)], upstreams, counters, SignatureUnion(upstreams, ())
                )
            ).verdict is Verdict.UNKNOWN
    async with asking() as upstreams:
        assert (await ask([no_index], upstreams, counters)).verdict is Verdict.UNKNOWN
    assert counted(counters) == (0, 0, 0, 3)


class Slow:
    """Knows one narinfo, and answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[HashPart] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    def is_loop(self, via: Chain) -> bool:
        return "here" in via

    async def find(self, hash_part: HashPart, via: Chain = ()) -> NarInfo | None:
        assert not self.is_loop(via)
        self.asked.append(hash_part)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return NarInfo.parse(narinfo_text(hash_part).encode()) if hash_part == HASH_PART else None

    async def find_ahead(self, hash_part: HashPart) -> NarInfo | None:
        return await self.find(hash_part)


async def test_a_look_up_ahead_serves_who_asks_meanwhile() -> None:
    """Where it finds something; else the client's own follows, for not all may be asked ahead."""
    upstream = Slow()
    finder = UpstreamFinder(upstream, 4)
    for outcome, asked in ((None, 1), (UpstreamError("not asked"), 3)):
        upstream.error = outcome
        ahead = asyncio.create_task(finder.find_ahead(HASH_PART))
        client = asyncio.create_task(finder.find(HASH_PART))
        await let_run()
        assert await finder.find_ahead(HASH_PART) is None
        upstream.gate.set()
        found = await asyncio.gather(ahead, client, return_exceptions=True)
        assert all(isinstance(one, UpstreamError if outcome else NarInfo) for one in found)
        assert upstream.asked == [HASH_PART] * asked
        upstream.gate.clear()


async def test_one_look_up_serves_all_who_ask_meanwhile() -> None:
    """Whatever comes of it, and whoever hangs up; it is not remembered."""
    upstream = Slow()
    finder = UpstreamFinder(upstream, 4)
    for outcome in (None, UpstreamError("down")):
        upstream.error = outcome
        clients = [asyncio.create_task(finder.find(HASH_PART)) for _ in range(20)]
        await let_run()
        clients[0].cancel()
        upstream.gate.set()
        found = await asyncio.gather(*clients[1:], return_exceptions=True)
        assert len(set(map(repr, found))) == 1
        assert isinstance(found[0], UpstreamError if outcome else NarInfo)
        upstream.gate.clear()
    assert upstream.asked == [HASH_PART] * 2


async def test_few_look_ups_go_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for their turn, and what cannot even wait is unknown at once; nothing is left behind."""
    monkeypatch.setattr(lookup, "MOST_LOOK_UPS", 10)
    upstream = Slow()
    finder = UpstreamFinder(upstream, 4)
    clients = [asyncio.create_task(finder.find(hash_part_of(str(number)))) for number in range(10)]
    await let_run()
    assert len(upstream.asked) == 4
    with pytest.raises(UpstreamError):
        await finder.find(HASH_PART)
    joined = asyncio.create_task(finder.find(hash_part_of("9")))
    upstream.gate.set()
    assert await asyncio.gather(*clients, joined) == [None] * 11
    assert await finder.find(HASH_PART) is not None
    assert len(upstream.asked) == 11


async def test_look_ups_end_with_the_proxy() -> None:
    """Whoever waits for an upstream does not keep the proxy from stopping."""
    finder = UpstreamFinder(Slow(), 1)
    clients = [asyncio.create_task(finder.find(hash_part_of(str(number)))) for number in range(3)]
    await let_run()
    await finder.close()
    for one in clients:
        with pytest.raises(asyncio.CancelledError):
            await one


async def test_a_request_that_came_through_here_ends_at_once() -> None:
    """Nobody waits for a look-up that waits for him; who came through others does not share one either."""
    upstream = Slow()
    finder = UpstreamFinder(upstream, 4)
    own = asyncio.create_task(finder.find(HASH_PART))
    await let_run()
    assert await finder.find(HASH_PART, ("other", "here")) is None
    others = asyncio.create_task(finder.find(HASH_PART, ("other",)))
    await let_run()
    assert upstream.asked == [HASH_PART, HASH_PART]
    upstream.gate.set()
    assert await own == await others
    await finder.close()

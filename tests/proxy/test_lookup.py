"""Look-ups: hit, miss and unknown are told apart, and each is counted as what it is."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import Answer, look_up
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish
from tests.support.upstream_server import HASH_PART, answering, asking, narinfo_text, refusing, serve

MakeIndex = Callable[[], LiveIndex]


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


def counted(counters: Counters) -> tuple[int, int, int, int]:
    return counters.hits, counters.upstream_hits, counters.misses, counters.unknown


async def test_what_is_here_is_a_hit_and_no_upstream_is_asked(index: LiveIndex) -> None:
    """A hit costs no network."""
    counters = Counters()
    async with asking(refusing()) as upstreams:
        found = await look_up(hash_part_of("here"), index, upstreams, counters)
        assert upstreams.health()[0].failures == 0
    assert found.answer is Answer.HIT
    assert found.narinfo is not None
    assert NarInfo.parse(found.narinfo).store_path.hash_part == hash_part_of("here")
    assert counted(counters) == (1, 0, 0, 0)


async def test_what_an_upstream_has_is_an_upstream_hit(index: LiveIndex, no_index: LiveIndex) -> None:
    """With an index or without one; and its URL leads through here."""
    counters = Counters()
    async with serve(answering(text=narinfo_text())) as url, asking(url, refusing()) as upstreams:
        for each in (index, no_index):
            found = await look_up(HASH_PART, each, upstreams, counters)
            assert found.answer is Answer.UPSTREAM_HIT
            assert found.narinfo is not None
            assert NarInfo.parse(found.narinfo).url.startswith("upstream/")
    assert counted(counters) == (0, 2, 0, 0)


async def test_a_miss_is_what_everybody_denies(index: LiveIndex) -> None:
    """This cache and each upstream said so themselves."""
    counters = Counters()
    async with serve(answering(status=404)) as url, asking(url) as upstreams:
        assert (await look_up(HASH_PART, index, upstreams, counters)).answer is Answer.MISS
    async with asking() as upstreams:
        assert (await look_up(HASH_PART, index, upstreams, counters)).answer is Answer.MISS
    assert counted(counters) == (0, 0, 2, 0)


async def test_who_could_not_be_asked_makes_it_unknown(index: LiveIndex, no_index: LiveIndex) -> None:
    """An upstream that is dead, or no index at all: nobody knows, and nobody says no."""
    counters = Counters()
    async with serve(answering(status=404)) as url:
        async with asking(url, refusing()) as upstreams:
            assert (await look_up(HASH_PART, index, upstreams, counters)).answer is Answer.UNKNOWN
        async with asking(url) as upstreams:
            assert (await look_up(HASH_PART, no_index, upstreams, counters)).answer is Answer.UNKNOWN
    async with asking() as upstreams:
        assert (await look_up(HASH_PART, no_index, upstreams, counters)).answer is Answer.UNKNOWN
    assert counted(counters) == (0, 0, 0, 3)

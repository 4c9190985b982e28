"""This cache's narinfos with upstreams' signatures: asked for where none of its own counts."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.proxy import signature_union
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import find_hit, look_up
from nixcache_oci.proxy.signature_union import SignatureUnion
from tests.support.front import open_cache
from tests.support.objects import store_object
from tests.support.publish import publish
from tests.support.upstream_server import answering, asking, refusing, serve, silent, talk

TRUSTED, OTHER = SecretKey.generate("trusted-1"), SecretKey.generate("other-1")
KEYS = (TRUSTED.public_key,)


def signed(narinfo: NarInfo, *keys: SecretKey) -> NarInfo:
    return replace(narinfo, sigs=tuple(key.sign(fingerprint(narinfo)) for key in keys))


OBJECTS = {kind: store_object(kind) for kind in ("counts", "other", "unsigned")}
HERE = {
    "counts": signed(OBJECTS["counts"].narinfo, TRUSTED),
    "other": signed(OBJECTS["other"].narinfo, OTHER),
    "unsigned": OBJECTS["unsigned"].narinfo,
}


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[LiveIndex]:
    """An index over a cache that holds three objects."""
    layout = Layout(tmp_path / "cache")
    await publish(layout, [replace(OBJECTS[kind], narinfo=narinfo) for kind, narinfo in HERE.items()])
    folder = IndexFolder(tmp_path / "index", layout.name)
    index = LiveIndex(layout, folder, (), 300, Counters(), client_keys=KEYS)
    await index.refresh(thoroughly=True)
    yield index
    await index.close()


class Cache:
    """An upstream that has everything, signed."""

    def __init__(self, *keys: SecretKey, rebuilt: bool = False) -> None:
        self.asked: list[str] = []
        self._keys = keys
        self._rebuilt = rebuilt

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        [narinfo] = [one for one in HERE.values() if one.store_path.hash_part in request.path]
        if self._rebuilt:
            narinfo = replace(narinfo, nar_hash=NixHash(bytes(32)))
        return web.Response(text=signed(replace(narinfo, url="nar/a.nar"), *self._keys).render())


async def ask(kind: str, index: LiveIndex, url: str, times: int = 1, via: tuple[str, ...] = ()) -> NarInfo:
    async with asking(url, client_keys=KEYS) as upstreams:
        union = SignatureUnion(upstreams, KEYS)
        hash_part = HERE[kind].store_path.hash_part
        for _ in range(times - 1):
            await look_up(hash_part, [open_cache(index)], upstreams, Counters(), union, via)
        found = await look_up(hash_part, [open_cache(index)], upstreams, Counters(), union, via)
    assert found.narinfo is not None
    return NarInfo.parse(found.narinfo)


def assert_ours(kind: str, narinfo: NarInfo, *more: str) -> None:
    assert narinfo.url.startswith("nar/")
    assert narinfo.nar_hash == HERE[kind].nar_hash
    assert names(narinfo) == [*names(HERE[kind]), *more]


def names(narinfo: NarInfo) -> list[str]:
    return [sig.key_name for sig in narinfo.sigs]


async def test_a_hit_that_counts_asks_nobody(index: LiveIndex) -> None:
    """A hit costs no network."""
    cache = Cache(OTHER)
    async with serve(cache.answer) as url:
        assert_ours("counts", await ask("counts", index, url))
    assert cache.asked == []


@pytest.mark.parametrize("kind", ["other", "unsigned"])
async def test_a_hit_that_does_not_count_gets_what_upstreams_add(index: LiveIndex, kind: str) -> None:
    """The bytes stay this cache's; and each path is asked for once."""
    cache = Cache(TRUSTED)
    async with serve(cache.answer) as url:
        narinfo = await ask(kind, index, url, times=3)
    assert_ours(kind, narinfo, "trusted-1")
    assert len(cache.asked) == 1


async def test_of_two_results_the_one_that_counts_is_served(index: LiveIndex) -> None:
    """Nix would take that one, and refuse ours."""
    async with serve(Cache(TRUSTED, rebuilt=True).answer) as url:
        narinfo = await ask("other", index, url)
    assert names(narinfo) == ["trusted-1"]
    assert narinfo.url.startswith("upstream/")
    async with serve(Cache(rebuilt=True).answer) as url:
        assert_ours("other", await ask("other", index, url))


async def test_another_proxy_gets_what_is_here(index: LiveIndex) -> None:
    """It asks whom it likes itself, and may be the upstream that would be asked."""
    cache = Cache(TRUSTED)
    async with serve(cache.answer) as url:
        assert_ours("other", await ask("other", index, url, via=("another",)))
    assert cache.asked == []


async def test_upstreams_that_fail_take_nothing_away(index: LiveIndex) -> None:
    """A hit stays one, whatever they do."""
    async with serve(answering(status=404)) as missing, serve(answering(status=500)) as broken:
        for url in (missing, broken, refusing()):
            assert_ours("other", await ask("other", index, url))


async def test_an_upstream_that_hangs_costs_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each path."""
    monkeypatch.setattr(signature_union, "WAIT_SECONDS", 0.1)
    async with talk(silent) as url, asking(url, client_keys=KEYS, answer_seconds=60) as upstreams:
        union = SignatureUnion(upstreams, KEYS)
        first = await union.unite(letters("other"), HERE["other"].render().encode())
        monkeypatch.setattr(signature_union, "WAIT_SECONDS", 3600)
        second = await union.unite(letters("unsigned"), HERE["unsigned"].render().encode())
    assert (first, second) == tuple(HERE[kind].render().encode() for kind in ("other", "unsigned"))


async def test_the_front_answers_what_is_remembered(index: LiveIndex) -> None:
    """After the first time it costs no network either, and a new narinfo is asked for anew."""
    async with serve(Cache(TRUSTED).answer) as url, asking(url, client_keys=KEYS) as upstreams:
        union = SignatureUnion(upstreams, KEYS)
        caches = [open_cache(index)]
        assert find_hit(letters("counts"), caches, union) is not None
        assert find_hit(letters("other"), caches, union) is None
        assert index.catalog is not None
        own = index.catalog.find(HERE["other"].store_path.hash_part)
        assert own is not None
        served = await union.unite(letters("other"), own)
        assert find_hit(letters("other"), caches, union) == (caches[0], served)
        assert union.known(letters("other"), HERE["unsigned"].render().encode()) is None


def letters(kind: str) -> HashPartBytes:
    return HashPartBytes(HERE[kind].store_path.hash_part.encode())

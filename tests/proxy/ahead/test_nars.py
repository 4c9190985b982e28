"""NARs of upstreams that are fetched before a client asks: only what it will ask for, once, and right."""

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.proxy import server
from nixcache_oci.proxy.ahead import nars
from nixcache_oci.proxy.ahead.nars import BESIDE_STREAMS, MOST_AT_ONCE
from nixcache_oci.proxy.ahead.wanted import FIRST_UNREAD, MAX_NAR_BYTES
from nixcache_oci.proxy.cache_set import ConfiguredCache
from tests.proxy.ahead.far_cache import FarCache, Near, far_cache, names, near, settle
from tests.support.front import proxy_config
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish

MIB = 1024 * 1024


async def test_who_only_looks_has_no_nar_fetched(tmp_path: Path, far: FarCache) -> None:
    """path-info, --dry-run and -qas ask for narinfos, by GET or HEAD, and never for a NAR."""
    for name in names(200):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(200))
        for url in list(urls.values())[:5]:
            await client.get(url, "HEAD")
        await settle(client)
        assert (await client.counters())["upstream_nars_fetched_ahead"] == 0
    assert far.asked_nars == [far.path_of(name) for name in names(5)]  # HEADs, passed on


async def test_the_first_nar_releases_the_others_and_each_is_asked_for_once(
    tmp_path: Path, far: FarCache
) -> None:
    """What comes is right, what is large is left to the client, and all that was fetched is used."""
    for name in names(60):
        far.add(name)
    far.add("large", size=MAX_NAR_BYTES + 1)
    async with near(tmp_path, far) as client:
        urls = await client.look([*names(60), "large"])
        await client.nar(urls["path-0"])
        await far.until(lambda: len(far.asked_nars) == 60)
        for name in [*names(60), "large"]:
            assert await client.nar(urls[name]) == far.nars[far.path_of(name)]
        counters = await client.counters()
    assert sorted(far.asked_nars) == sorted(far.nars)
    assert counters["upstream_nars_fetched_ahead"] == counters["upstream_nars_ahead_used"] == 59
    assert counters["upstream_bytes_fetched_ahead"] == 59 * 300
    assert counters["upstream_nars_ahead_unused"] == 0


async def test_what_is_given_after_the_last_nar_waits_for_the_next(tmp_path: Path, far: FarCache) -> None:
    """A path-info behind a substitution fetches nothing."""
    for name in names(4):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(1))
        await client.nar(urls["path-0"])
        urls = await client.look(names(4)[1:])
        await settle(client)
        assert len(far.asked_nars) == 1
        await client.nar(urls["path-1"])
        await far.until(lambda: len(far.asked_nars) == 4)


async def test_what_is_on_its_way_is_joined(tmp_path: Path, far: FarCache) -> None:
    """By any number of clients, and what a client asked for first by the next one."""
    for name in names(5):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(5))
        far.gate.clear()
        asking = [asyncio.create_task(client.nar(url)) for url in urls.values() for _ in range(3)]
        await far.until(lambda: far.under_way == 5)
        await settle(client)
        far.gate.set()
        answers = await asyncio.gather(*asking)
        assert answers == [far.nars[far.path_of(name)] for name in urls for _ in range(3)]
    assert sorted(far.asked_nars) == sorted(far.nars)


async def test_a_range_of_what_is_here_is_sent(tmp_path: Path, far: FarCache) -> None:
    """Nix resumes what was cut."""
    far.add("a")
    async with near(tmp_path, far) as client:
        url = (await client.look(["a"]))["a"]
        whole = await client.nar(url)
        assert await client.get(url, Range="bytes=100-") == (206, whole[100:])
        assert (await client.get(url, Range="bytes=900-"))[0] == 416
    assert len(far.asked_nars) == 1


async def test_few_are_fetched_at_once(tmp_path: Path, far: FarCache) -> None:
    """An upstream sees no more requests than the bound, with those of clients."""
    for name in names(60):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(60))
        far.gate.clear()
        first = asyncio.create_task(client.nar(urls["path-0"]))
        await far.until(lambda: far.under_way == MOST_AT_ONCE)
        await settle(client)
        far.gate.set()
        await first
        await far.until(lambda: len(far.asked_nars) == 60)
    assert far.most_under_way == MOST_AT_ONCE


async def test_few_are_fetched_beside_a_stream(tmp_path: Path, far: FarCache) -> None:
    """What a client asked for now has the line."""
    for name in names(60):
        far.add(name)
    far.add("large", size=2 * MAX_NAR_BYTES)
    async with near(tmp_path, far) as client:
        urls = await client.look([*names(60), "large"])
        far.gate.clear()
        streaming = asyncio.create_task(client.nar(urls["large"]))
        await far.until(lambda: far.under_way == 1 + BESIDE_STREAMS)
        await settle(client)
        assert far.most_under_way == 1 + BESIDE_STREAMS
        far.gate.set()
        await streaming


async def test_unread_nars_are_bounded_in_number(tmp_path: Path, far: FarCache) -> None:
    """Where a client asks for others than were guessed, little was fetched in vain."""
    for name in names(3 * FIRST_UNREAD):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(3 * FIRST_UNREAD))
        await client.nar(urls["path-0"])
        await far.until(lambda: len(far.asked_nars) == 1 + FIRST_UNREAD)
        await settle(client)
        assert len(far.asked_nars) == 1 + FIRST_UNREAD


async def test_unread_nars_are_bounded_in_bytes(tmp_path: Path, far: FarCache) -> None:
    """With packs and all caches together: a quarter of their memory. What was read makes room."""
    for name in names(30):
        far.add(name, size=MIB)
    async with near(tmp_path, far, pack_memory_bytes=64 * MIB) as client:
        urls = await client.look(names(30))
        await client.nar(urls["path-0"])
        await far.until(lambda: len(far.asked_nars) == 17)
        await settle(client)
        assert len(far.asked_nars) == 17
        assert (await client.status())["pack_cache_bytes"] == 17 * MIB
        for url in urls.values():
            await client.nar(url)
        assert (await client.status())["pack_cache_bytes"] <= 64 * MIB
    assert sorted(far.asked_nars) == sorted(far.nars)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_upstream_that_refuses_is_asked_for_nothing_more(
    tmp_path: Path, far: FarCache, status: int
) -> None:
    """Until the pause is over, it gets its clients' own requests and no others."""
    for name in names(60):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(60))
        far.statuses["nar"] = status
        assert (await client.get(urls["path-0"]))[0] == 404
        asked = len(far.asked_nars)
        far.statuses.clear()
        await client.nar(urls["path-59"])
        await settle(client)
        assert far.asked_nars[asked:] == [far.path_of("path-59")]
        assert (await client.counters())["upstream_nars_fetched_ahead"] < MOST_AT_ONCE


async def test_a_slow_upstream_does_not_hold_up_another(tmp_path: Path, far: FarCache) -> None:
    """Each has its own bound."""
    for name in names(60, "slow"):
        far.add(name)
    async with far_cache() as quick:
        for name in names(60, "quick"):
            quick.add(name)
        async with near(tmp_path, far, quick) as client:
            urls = await client.look([*names(60, "slow"), *names(60, "quick")])
            far.gate.clear()
            first = asyncio.create_task(client.nar(urls["slow-0"]))
            await client.nar(urls["quick-0"])
            await quick.until(lambda: len(quick.asked_nars) >= 30)
            assert far.under_way <= MOST_AT_ONCE
            far.gate.set()
            await first


@pytest.mark.parametrize("wrong", [b"", b"x" * 299, b"x" * 300, b"x" * 301, b"x" * 3 * MIB])
async def test_wrong_bytes_never_serve(tmp_path: Path, far: FarCache, wrong: bytes) -> None:
    """They are dropped; the client's own request gets what it got before, which Nix checks."""
    for name in names(3):
        far.add(name)
    bad = far.path_of("path-1")
    far.wrong[bad] = wrong
    async with near(tmp_path, far) as client:
        urls = await client.look(names(3))
        await client.nar(urls["path-0"])
        await far.until(lambda: len(far.asked_nars) == 3 and not far.under_way)
        await settle(client)
        del far.wrong[bad]
        assert hashlib.sha256(await client.nar(urls["path-1"])).hexdigest() in bad
        counters = await client.counters()
        assert counters["upstream_nars_ahead_unused"] == 1
        assert (await client.status())["pack_cache_bytes"] == 2 * 4096
    assert far.asked_nars.count(bad) == 2


async def test_a_slow_line_is_left_to_what_a_client_waits_for(
    tmp_path: Path, far: FarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else that is fetched ahead from there ends, and the client's NAR is not asked for again."""
    for name in names(20):
        far.add(name)
    async with near(tmp_path, far) as client:
        urls = await client.look(names(20))
        far.gate.clear()
        monkeypatch.setattr(nars, "SLOW_SECONDS", 60.0)
        asking = [asyncio.create_task(client.nar(urls["path-0"]))]
        await far.until(lambda: far.under_way == 20)
        monkeypatch.setattr(nars, "SLOW_SECONDS", 0.0)
        asking.append(asyncio.create_task(client.nar(urls["path-1"])))
        await far.until(lambda: far.under_way == 2)
        far.gate.set()
        for name, answer in zip(("path-0", "path-1"), await asyncio.gather(*asking), strict=True):
            assert answer == far.nars[far.path_of(name)]
            assert far.asked_nars.count(far.path_of(name)) == 1


async def test_switched_off_nothing_is_fetched_ahead(tmp_path: Path, far: FarCache) -> None:
    """NIXCACHE_AHEAD=0."""
    for name in names(5):
        far.add(name)
    async with near(tmp_path, far, ahead=False) as client:
        urls = await client.look(names(5))
        await client.nar(urls["path-0"])
        await settle(client)
    assert len(far.asked_nars) == 1


async def test_another_proxy_fetches_ahead_itself(tmp_path: Path, far: FarCache) -> None:
    """Two in a row ask for each NAR once."""
    for name in names(5):
        far.add(name)
    async with near(tmp_path / "inner", far) as inner:
        between = FarCache(url=inner.url)
        async with near(tmp_path / "outer", between) as client:
            urls = await client.look(names(5))
            for name in names(5):
                assert await client.nar(urls[name]) == far.nars[far.path_of(name)]
            assert (await inner.counters())["upstream_nars_fetched_ahead"] == 0
    assert sorted(far.asked_nars) == sorted(far.nars)


async def test_the_end_does_not_wait_for_what_is_on_its_way(
    tmp_path: Path, far: FarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the middle of a substitution: who waits for a NAR is cut, so that Nix asks again."""
    monkeypatch.setattr(server, "_GRACE_SECONDS", 600.0)
    for name in names(20):
        far.add(name)
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(60), AsyncExitStack() as stack:
            config = proxy_config(tmp_path, upstreams=(far.url,))
            caches = [ConfiguredCache(Layout(tmp_path / "none"))]
            [url] = await stack.enter_async_context(server.serving(config, caches))
            client = Near(url, session)
            urls = await client.look(names(20))
            far.gate.clear()
            asking = asyncio.create_task(client.nar(urls["path-0"]))
            await far.until(lambda: far.under_way == 20)
        with pytest.raises(aiohttp.ClientError):
            await asking
    await far.until(lambda: far.under_way == 0)


async def test_who_waited_for_long_gets_the_bytes_as_they_come(
    tmp_path: Path, far: FarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that Nix, which wants a byte within 300 s, does not give up."""
    monkeypatch.setattr(nars, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(nars, "GIVEN_UP_SECONDS", 0.0)
    far.add("a")
    async with near(tmp_path, far) as client:
        urls = await client.look(["a"])
        far.gate.clear()
        asking = asyncio.create_task(client.nar(urls["a"]))
        await far.until(lambda: len(far.asked_nars) == 2 and far.under_way == 1)
        far.gate.set()
        assert await asking == far.nars[far.path_of("a")]
        assert (await client.status())["pack_cache_bytes"] == 0


async def test_an_upstream_that_names_a_blob_of_this_cache_does_not_hold_it_up(
    tmp_path: Path, far: FarCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched from it is its own, whatever digest its narinfo claims."""
    monkeypatch.setattr(nars, "SLOW_SECONDS", 600.0)
    own = store_object("own", contents=random.Random(1).randbytes(1000))
    await publish(Layout(tmp_path / "none"), [own], in_packs=False)
    for name in ("first", "claims"):
        far.add(name)
    part = hash_part_of("claims")
    narinfo, content = own.compressed()
    far.narinfos[part] = replace(far.narinfos[part], file_hash=narinfo.file_hash, file_size=narinfo.file_size)
    async with near(tmp_path, far) as client:
        assert (await client.get("_refresh", "POST"))[0] == 200
        urls = await client.look(["first", "claims"])
        far.gate.clear()
        first = asyncio.create_task(client.nar(urls["first"]))
        await far.until(lambda: far.under_way == 2)
        async with asyncio.timeout(60):
            assert await client.nar(narinfo.url) == content
        far.gate.set()
        await first

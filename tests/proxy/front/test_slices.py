"""Slices of packs, by the front and by the library alone: one server to any client."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, MAX_PACKED_NAR_BYTES
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.front.aiohttp_protocol import AiohttpProtocol
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.packs import memory
from tests.support.front import Bench, fetched, make_bench, read_index
from tests.support.front_requests import FIELDS, Conversation, both_ways, conversations
from tests.support.objects import hash_part_of, store_object
from tests.support.packs import PackedCache, publish_packs
from tests.support.publish import publish

_STATES = ("absent", "asked for", "fetched ahead", "read")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PackedCache:
    """Five packs, the last of which is not what its digest says."""
    cache = publish_packs(tmp_path_factory.mktemp("slices"), count=5)
    cache.spoil(cache.packs[-1])
    return cache


@pytest.fixture
async def bench(cache: PackedCache) -> AsyncIterator[Bench]:
    async with make_bench(cache.folder) as bench:
        yield bench


@pytest.fixture
async def index(cache: PackedCache) -> LiveIndex:
    return await read_index(cache.folder)


def _odd_targets(cache: PackedCache) -> list[str]:
    nar, good, hit = cache.nars[0], cache.slices[0], cache.narinfos[0]
    pack, pack_bytes = f"/nar/{nar.blob.hex}", cache.file_of(nar.blob).stat().st_size
    places = [
        *(f"{pack_bytes}-1", f"{pack_bytes - 1}-1", f"0-{pack_bytes}", f"0-{pack_bytes + 1}", "0-0", "00-5"),
        *("0-05", "-5", "5-", "0--1", "0-1,2-1", f"0-{MAX_PACKED_NAR_BYTES}"),
        *(f"0-{MAX_PACKED_NAR_BYTES + 1}", f"{MAX_PACK_BYTES}-1", f"{10**17}-1", f"{10**18}-1"),
    ]
    return [
        *(f"{pack}/{place}.nar" for place in places),
        *(
            f"{pack}/0-9.nar{suffix}"
            for suffix in (".xz", ".nar", ".", ".z-", "x", "?x", "/", "%20", "\u0663")
        ),
        f"{pack}/\u0660-9.nar",
        f"/nar/{Digest.of(b'nowhere').hex}/0-9.nar",
        good.upper(),
        good.replace("-", "%2D"),
        f"/{good}",
        f"http://localhost{good}",
        f"http://evil.example{good}",
        *(
            f"{hit}?query",
            hit.upper(),
            "/e" + hit[2:],
            "/%61" + hit[2:],
            f"/{hit}",
            hit[1:],
            cache.narinfos[-1],
        ),
        *(f"http://evil.example{hit}", f"http://localhost{hit}", "/" + "x" * 9000, "*", "/\u00e9"),
        *("/nar/", "/health", "/nix-cache-info", "/nowhere"),
    ]


def _serve_narinfo(bench: Bench, target: str) -> None:
    """Have the NAR of a narinfo fetched ahead."""
    catalog = bench.cache.index.catalog
    assert catalog is not None
    found = catalog.find(HashPart(target[1:].removesuffix(".narinfo")))
    assert found is not None
    bench.cache.packs.prefetch_for(found)


def _prepared(cache: PackedCache, states: Sequence[str]) -> Callable[[Bench], Awaitable[None]]:
    async def prepare(bench: Bench) -> None:
        packs = bench.cache.packs
        for pack, target, state in zip(cache.packs, cache.narinfos, states, strict=False):
            if state != "absent":
                _serve_narinfo(bench, target)
            if state == "read":
                await packs.cut_out(pack, 0, 1)
            if state == "fetched ahead":
                await fetched(packs)

    return prepare


@given(data=st.data(), states=st.tuples(*[st.sampled_from(_STATES)] * 2))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_both_ways_answer_alike(
    cache: PackedCache, index: LiveIndex, data: st.DataObject, states: Sequence[str]
) -> None:
    """The same bytes, however they are cut, get the same answers but for Date, and count and log alike.

    So it is for hits and misses, and whether the packs are in memory, read or not, on their way, absent, or
    wrong; and the same packs are at hand afterwards.
    """
    first, nar = cache.slices[0], cache.nars[0]
    beyond = f"/{replace(nar, offset=(nar.offset or 0) + 1)}"  # by one byte
    too_long = f"/{replace(nar, length=MAX_PACKED_NAR_BYTES)}".replace("262144", "262145")
    slices = [first, first, beyond, too_long, cache.slices[1], cache.slices[-1]]
    plain_targets = [*slices, *cache.narinfos[:2], f"/{hash_part_of('absent')}.narinfo"]
    conversation: Conversation = data.draw(conversations(plain_targets, _odd_targets(cache)))
    alone, with_front = await both_ways(cache, index, conversation, _prepared(cache, states))
    assert with_front == alone


async def test_each_odd_request_is_answered_alike(cache: PackedCache, index: LiveIndex) -> None:
    """Whatever may matter in a request keeps it from the fast path: each field, target and line by itself."""
    plain = [f"GET {target} HTTP/1.1\r\n".encode() for target in (cache.narinfos[0], cache.slices[0])]
    host = b"Host: localhost\r\n"
    requests = [
        line + host + field + b"\r\n" for line in plain for field in (b"Origin: http://x\r\n", *FIELDS)
    ]
    requests += [f"GET {target} HTTP/1.1\r\n".encode() + host + b"\r\n" for target in _odd_targets(cache)]
    for line in plain:
        requests += [
            line + b"\r\n",
            line + b"Host: elsewhere\r\n\r\n",
            line.replace(b"\r\n", b"\n") + host + b"\r\n",
        ]
        for old, new in (
            (b"GET", b"POST"),
            (b"GET", b"get"),
            (b"GET ", b"GET  "),
            (b"/1.1", b"/1.0"),
            (b"/1.1", b"/2.0"),
        ):
            requests.append(line.replace(old, new) + host + b"\r\n")
        hidden = line + host + b"\r\n"  # as a body, where a request seems to follow
        requests += [line + host + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden]
        requests += [line + host + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
    for request in requests:
        conversation = Conversation([request, plain[0] + host + b"\r\n"])
        alone, with_front = await both_ways(cache, index, conversation, _prepared(cache, ["read"]))
        assert with_front == alone, request


@pytest.mark.parametrize(
    "fields",
    [
        *("Host: localhost\r\n", "hOsT:localhost \t\r\n"),
        "Accept: */*\r\nUser-Agent: curl/8 Nix/2.8\r\nAccept-Encoding: deflate, gzip\r\nHost: localhost\r\n",
        "Host: localhost\r\nConnection: Keep-Alive\r\n",
        "Host: localhost\r\nCache-Control: no-cache\r\nPragma:\r\n",
    ],
)
async def test_what_nix_sends_never_comes_to_the_library(
    cache: PackedCache, bench: Bench, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    """Of a hit, or a slice in memory; or all that is proven here of both ways would be proven of one."""
    await bench.cache.packs.cut_out(cache.packs[0], 0, 1)
    async with bench.connect() as client:
        monkeypatch.setattr(AiohttpProtocol, "data_received", pytest.fail)
        for method in ("GET", "HEAD"):
            await client.send(f"{method} {cache.slices[0]} HTTP/1.1\r\n{fields}\r\n".encode())
        received = await client.expect(2)
        await client.send(f"GET {cache.narinfos[0]} HTTP/1.1\r\n{fields}\r\n".encode())
        assert (await client.expect(3)).count(b"HTTP/1.1 200 OK") == 3
    head = re.escape(received.partition(b"\r\n\r\n")[0])
    assert re.fullmatch(
        head + b"\r\n\r\n" + re.escape(cache.content_of(cache.nars[0])) + head + b"\r\n\r\n", received
    )


@pytest.mark.parametrize("size", [100, MAX_PACKED_NAR_BYTES + 1])
async def test_a_nar_of_its_own_is_answered_alike(tmp_path: Path, size: int) -> None:
    """Fetched ahead; one that is too large to be queued is the library's."""
    one = store_object("one", contents=random.Random(0).randbytes(size))
    await publish(Layout(tmp_path / "cache"), [one], in_packs=False)
    narinfo, _content = one.compressed()
    requests = [f"{method} /{narinfo.url} HTTP/1.1\r\nHost: localhost\r\n\r\n" for method in ("GET", "HEAD")]
    cache = PackedCache(tmp_path, [], [])

    async def prepare(bench: Bench) -> None:
        packs = bench.cache.packs
        packs.prefetch_for(narinfo.render().encode())
        await fetched(packs)

    conversation = Conversation([request.encode() for request in requests])
    alone, with_front = await both_ways(cache, await read_index(tmp_path), conversation, prepare)
    assert with_front == alone
    assert alone.received.count(b"HTTP/1.1 200 OK") == 2 + 1


@pytest.mark.parametrize("with_front", [True, False])
async def test_a_pack_in_quarantine_is_not_served_from_memory(
    cache: PackedCache, *, with_front: bool
) -> None:
    """What the registry shows under its digest is wrong now: both ways say 404 for a while."""
    pack = cache.packs[2]
    request = f"GET {cache.slices[2]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with make_bench(cache.folder) as bench, bench.connect(with_front=with_front) as client:
        await client.send(request)
        assert (await client.expect(1)).startswith(b"HTTP/1.1 200 ")
        cache.spoil(pack)
        try:
            await client.send(f"GET /nar/{pack.hex}.nar HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await client.expect(2)
        finally:
            cache.spoil(pack)
        await client.send(request)
        received = await client.expect(3)
        assert bench.cache.packs.used_bytes > 0
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404", b"404"]


@pytest.mark.parametrize("with_front", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_first_slice_has_the_next_pack_fetched(
    cache: PackedCache, method: str, monkeypatch: pytest.MonkeyPatch, *, with_front: bool
) -> None:
    """Four NARs were wanted and one found room: reading that lets two more come, and only once."""
    monkeypatch.setattr(memory, "_PREFETCH_SHARE", 2**28 // 4100)
    async with make_bench(cache.folder) as bench, bench.connect(with_front=with_front) as client:
        packs, counters = bench.cache.packs, bench.cache.counters
        for target in cache.narinfos[:4]:
            _serve_narinfo(bench, target)
        await fetched(packs)
        assert counters.ranges_fetched_ahead == 1
        for count in (1, 2):
            await client.send(f"{method} {cache.slices[0]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await client.expect(count)
            await fetched(packs)
            assert counters.ranges_fetched_ahead == 3
        here = [bench.cache.nars.cached(nar) is not None for nar in cache.nars[:4]]
        assert here == [True, True, True, False]

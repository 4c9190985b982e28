"""A small thing asked for in bulk comes fast: fetched ahead, in packs or not, once for all who want it."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.http.ranges import render_range
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.journey import put, settings_of
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject
from tests.support.registries import Ghcr

PATHS = 500
ALLOWED_REQUESTS = 20


def _ask_narinfos(proxy: ProxyProcess, objects: list[StoreObject]) -> list[NarInfo]:
    def ask_narinfo(one: StoreObject) -> NarInfo:
        return NarInfo.parse(proxy.ask(f"/{one.narinfo.store_path.hash_part}.narinfo").body)

    with ThreadPoolExecutor(16) as clients:
        return list(clients.map(ask_narinfo, objects))


def _read_all(proxy: ProxyProcess, objects: list[StoreObject]) -> None:
    """Ask for all narinfos, and then for all NARs."""

    def has_right_nar(narinfo: NarInfo) -> bool:
        assert narinfo.file_hash is not None
        return Digest.of(proxy.ask(f"/{narinfo.url}").body).hex == narinfo.file_hash.digest_hex

    narinfos = _ask_narinfos(proxy, objects)
    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(has_right_nar, narinfos))


def test_five_hundred_paths_cost_a_handful_of_requests(ghcr: Ghcr, key: SecretKey, tmp_path: Path) -> None:
    """From the start of a proxy that knows nothing: token, tags, index, table, packs, and that is all."""
    generator = random.Random(500)
    objects = [store_object(str(number), contents=generator.randbytes(3000)) for number in range(PATHS)]
    put(ghcr, objects, [key])
    ghcr.server.reset_requests()
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        _read_all(proxy, objects)
        assert proxy.status()["counters"]["ranges_fetched_ahead"] >= 1
    assert len(ghcr.server.requests) <= ALLOWED_REQUESTS


def test_of_what_else_lies_in_a_pack_nothing_is_fetched(ghcr: Ghcr, key: SecretKey, tmp_path: Path) -> None:
    """A closure may need a little of each pack: what the registry sends is that, and not the packs."""
    generator = random.Random(100)
    objects = [store_object(str(number), contents=generator.randbytes(100_000)) for number in range(128)]
    put(ghcr, objects, [key])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        narinfos = _ask_narinfos(proxy, objects)
    urls = sorted((NarUrl.parse(one.url) for one in narinfos), key=lambda url: (url.blob, url.offset or 0))
    wanted = {str(url) for url in urls[::16]}
    few = [one for one, narinfo in zip(objects, narinfos, strict=True) if narinfo.url in wanted]
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.reset_requests()
        _read_all(proxy, few)
    asked = {record.headers["Range"] for record in ghcr.server.requests if "Range" in record.headers}
    assert asked == {
        render_range(url.offset or 0, (url.offset or 0) + (url.length or 0)) for url in urls[::16]
    }


def test_nars_outside_packs_are_asked_for_once(ghcr: Ghcr, key: SecretKey, tmp_path: Path) -> None:
    """Before a client asks, or by it: what is fetched ahead and what is streamed are never the same."""
    generator = random.Random(100)
    objects = [store_object(str(number), contents=generator.randbytes(3000)) for number in range(100)]
    put(ghcr, objects, [key], in_packs=False)
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.reset_requests()
        _read_all(proxy, objects)
        assert proxy.status()["counters"]["nars_fetched_ahead"] >= 1
    # Of the registry, and of its storage.
    assert len(ghcr.server.requests) <= 2 * len(objects) + ALLOWED_REQUESTS

"""A small thing asked for in bulk comes fast: fetched ahead, in packs or not, once for all who want it."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.journey import put, settings_of
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject
from tests.support.registries import Ghcr

PATHS = 500
ALLOWED_REQUESTS = 10


def _read_all(proxy: ProxyProcess, objects: list[StoreObject]) -> None:
    """Ask for all narinfos, and then for all NARs."""

    def ask_narinfo(one: StoreObject) -> NarInfo:
        return NarInfo.parse(proxy.ask(f"/{one.narinfo.store_path.hash_part}.narinfo").body)

    def has_right_nar(narinfo: NarInfo) -> bool:
        assert narinfo.file_hash is not None
        return Digest.of(proxy.ask(f"/{narinfo.url}").body).hex == narinfo.file_hash.digest_hex

    with ThreadPoolExecutor(16) as clients:
        narinfos = list(clients.map(ask_narinfo, objects))
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
        assert proxy.status()["counters"]["packs_fetched_ahead"] >= 1
    assert len(ghcr.server.requests) <= ALLOWED_REQUESTS


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

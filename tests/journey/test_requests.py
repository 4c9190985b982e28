"""A small thing asked for in bulk comes fast: packs, fetched ahead, once for all who want them."""

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


def test_five_hundred_paths_cost_a_handful_of_requests(ghcr: Ghcr, key: SecretKey, tmp_path: Path) -> None:
    """From the start of a proxy that knows nothing: token, tags, index, table, packs, and that is all."""
    generator = random.Random(500)
    objects = [store_object(str(number), contents=generator.randbytes(3000)) for number in range(PATHS)]
    put(ghcr, objects, [key])
    ghcr.server.reset_requests()
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()

        def ask_narinfo(one: StoreObject) -> NarInfo:
            return NarInfo.parse(proxy.ask(f"/{one.narinfo.store_path.hash_part}.narinfo").body)

        def has_right_nar(narinfo: NarInfo) -> bool:
            assert narinfo.file_hash is not None
            return Digest.of(proxy.ask(f"/{narinfo.url}").body).hex == narinfo.file_hash.digest_hex

        with ThreadPoolExecutor(16) as clients:
            narinfos = list(clients.map(ask_narinfo, objects))
            assert all(clients.map(has_right_nar, narinfos))
        assert proxy.status()["counters"]["packs_fetched_ahead"] >= 1
    assert len(ghcr.server.requests) <= ALLOWED_REQUESTS

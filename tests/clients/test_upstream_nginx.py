"""A cache that Nix itself wrote, served by a server that caches stand on in earnest."""

import asyncio
import random
from pathlib import Path

import pytest

from nixcache_oci.nix.store_path import HashPart
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.upstream_server import HASH_PART, asking

pytestmark = pytest.mark.needs("nix", "nix-store", "nix-build", "nginx")


async def test_a_cache_that_nix_wrote(tmp_path: Path) -> None:
    """Each path of a real cache is found, its NAR arrives whole and in parts; other paths are misses."""
    cache = tmp_path / "cache"
    nix = NixSandbox(tmp_path / "nix")
    paths = await asyncio.to_thread(nix.build_paths, 12)
    (await asyncio.to_thread(nix.copy_to, f"file://{cache}", paths)).check()
    async with nginx(tmp_path / "nginx", cache) as url, asking(url) as upstreams:
        for path in paths:
            narinfo = await upstreams.find(HashPart(Path(path).name[:32]))
            assert narinfo is not None
            assert str(narinfo.store_path) == path
            _, key, relative = narinfo.url.split("/", 2)
            content = (cache / relative.partition("/")[2]).read_bytes()
            assert (await upstreams.head_nar(key, relative)).size == len(content)
            async with upstreams.open_nar(key, relative) as nar:
                assert b"".join([chunk async for chunk in nar.chunks]) == content
            assert nar.head.accepts_ranges
            assert nar.head.validator
            start = random.Random(path).randrange(len(content))
            async with upstreams.open_nar(key, relative, start=start) as nar:
                assert b"".join([chunk async for chunk in nar.chunks]) == content[start:]
            assert (nar.head.status, nar.head.size) == (206, len(content))
        assert await upstreams.find(HASH_PART) is None
        [health] = upstreams.health()
    assert (health.hits, health.misses, health.failures) == (12, 1, 0)

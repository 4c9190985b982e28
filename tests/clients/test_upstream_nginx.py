"""A cache that Nix itself wrote, served by a server that caches stand on in earnest."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nixcache_oci.nix.store_path import HashPart
from tests.support.nix import NixSandbox
from tests.support.programs import require_program
from tests.support.upstream_server import HASH_PART, asking, refusing

pytestmark = pytest.mark.needs("nix", "nix-store", "nix-build", "nginx")

CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen {address}; root {root}; }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, root: Path) -> AsyncIterator[str]:
    """Serve a folder; gives the base URL."""
    url = refusing()
    address = url.removeprefix("http://")
    config = _configure(folder, root, address)
    program = await asyncio.create_subprocess_exec(
        require_program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)
    )
    try:
        async with asyncio.timeout(10):
            while not await _accepts(address):
                assert program.returncode is None
                await asyncio.sleep(0.01)
        yield url
    finally:
        if program.returncode is None:
            program.terminate()
        await program.wait()


def _configure(folder: Path, root: Path, address: str) -> Path:
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, root=root, address=address))
    return config


async def _accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


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
            content = (cache / relative).read_bytes()
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

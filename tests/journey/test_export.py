"""A cache as plain files, which Nix takes from a folder and from any web server."""

import asyncio
import random
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import settings_of
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine, assert_substitutable
from tests.support.registries import Ghcr

PATHS = 10
MIB = 1024 * 1024


@pytest.mark.needs("nix", "nginx")
async def test_nix_takes_it_from_a_folder_and_from_a_web_server(
    ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """With signatures on; packs are cut, blobs are copied; a second run writes only what is new."""
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(1).randbytes(3 * MIB)))
    settings = {**settings_of(ghcr, tmp_path), "NIX_SIGNING_KEY": key.render()}
    machine = Machine(tmp_path / "machine", nix, settings)
    folder = tmp_path / "flat"
    await asyncio.to_thread(lambda: machine.run("push", *paths[:4]).check())
    first = await asyncio.to_thread(lambda: machine.run("export", str(folder)).check())
    assert "4 paths written, 0 already there, 0 failed" in first.stdout
    await asyncio.to_thread(lambda: machine.run("push", *paths).check())
    second = await asyncio.to_thread(lambda: machine.run("export", str(folder)).check())
    assert f"{PATHS + 1 - 4} paths written, 4 already there" in second.stdout
    trusted = [str(key.public_key)]
    async with nginx(tmp_path / "nginx", folder) as url:
        for source in (f"file://{folder}", url):
            trusting = nix.environment(substituters=[source], trusted_keys=trusted)
            copy = ("nix", "copy", "--from", source, "--to", str(nix.new_store()), *paths)
            (await asyncio.to_thread(nix.run, *copy, environment=trusting)).check()
    # And back into another cache.
    back = {"NIXCACHE_REGISTRY": f"oci:{tmp_path / 'layout'}", "NIXCACHE_PUBLIC_KEYS": trusted[0]}
    ran = await asyncio.to_thread(lambda: machine.run("import", str(folder), **back).check())
    assert f"{PATHS + 1} paths pushed" in ran.stdout
    with ProxyProcess(tmp_path / "proxy", **back) as proxy:
        await asyncio.to_thread(proxy.wait_ready)
        await asyncio.to_thread(assert_substitutable, proxy, paths)

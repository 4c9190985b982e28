"""A line that breaks, bytes that are wrong: what a client gets is right and whole, or visibly broken."""

import random
from pathlib import Path

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import put, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject
from tests.support.registries import Ghcr


def narinfo_of(proxy: ProxyProcess, one: StoreObject) -> NarInfo:
    return NarInfo.parse(proxy.ask(f"/{one.narinfo.store_path.hash_part}.narinfo").body)


@pytest.mark.needs("nix")
def test_nix_does_not_add_what_is_wrong(ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """A flipped byte in the registry never becomes a store object."""
    path = nix.build_file("large", random.Random(3).randbytes(1_000_000))
    [built] = read_objects(nix, [path])
    put(ghcr, [built], [key])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.corrupt_blob(NarUrl.parse(narinfo_of(proxy, built).url).blob, 500_000)
        run = nix.realise([path], substituters=[proxy.url], trusted_keys=[str(key.public_key)])
        assert run.returncode != 0
        # What it unpacked may lie there; it is no store object until Nix says so.
        assert nix.run("nix-store", "--check-validity", path, store=run.store).returncode != 0


@pytest.mark.needs("nix")
def test_nix_gets_a_whole_nar_over_a_line_that_keeps_breaking(
    ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Nix notices nothing, and NarHash agrees."""
    path = nix.build_file("large", random.Random(4).randbytes(2_000_000))
    put(ghcr, read_objects(nix, [path]), [key])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.fault("storage-get", "cut", after=300_000, times=4)
        run = nix.realise([path], substituters=[proxy.url], trusted_keys=[str(key.public_key)]).check()
        assert nix.dump(path, run.store) == nix.dump(path)

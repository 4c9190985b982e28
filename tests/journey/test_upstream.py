"""What is not in the cache comes from upstream, through the proxy or past it."""

from pathlib import Path

import pytest

from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.upstream_server import refusing

pytestmark = pytest.mark.needs("nix", "nix-store", "nix-build", "nginx")

PATHS = 12


@pytest.mark.parametrize("nars", ["stream", "direct"])
async def test_nix_gets_upstream_paths(nix: NixSandbox, tmp_path: Path, nars: str) -> None:
    """Signatures on, and only the upstream's key trusted; a dead upstream beside it changes nothing."""
    secret, public = nix.generate_key("upstream-1")
    paths = nix.build_paths(PATHS)
    nix.sign(paths, secret)
    nix.copy_to(f"file://{tmp_path}/upstream", paths).check()
    async with nginx(tmp_path / "nginx", tmp_path / "upstream") as url:
        with ProxyProcess(
            tmp_path / "proxy",
            NIXCACHE_REGISTRY=f"oci:{tmp_path}/empty",
            NIXCACHE_UPSTREAM=f"{refusing()} {url}",
            NIXCACHE_UPSTREAM_NARS=nars,
        ) as proxy:
            proxy.wait_ready()
            done = nix.realise(paths, substituters=[proxy.url], trusted_keys=[public]).check()
            for path in paths:
                assert nix.dump(path, done.store) == nix.dump(path)
            counters = proxy.status()["counters"]
            assert counters["upstream_hits"] == PATHS
            assert (counters["upstream_nar_bytes"] > 0) is (nars == "stream")

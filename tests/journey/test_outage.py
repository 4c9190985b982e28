"""The registry is away: what the proxy has, it serves; what it cannot know, Nix builds."""

from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import put, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.proxy import ProxyProcess
from tests.support.registries import Ghcr

BUILDABLE = """derivation {
  name = "buildable"; system = builtins.currentSystem;
  builder = "/bin/sh"; args = [ "-c" "echo built > $out" ];
}"""


@pytest.mark.needs("nix")
def test_nix_builds_on_where_nothing_can_be_known(ghcr: Ghcr, nix: NixSandbox, tmp_path: Path) -> None:
    """A dead cache must not break a build."""
    ghcr.server.stop()
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        run = nix.build_expression(BUILDABLE, substituters=[proxy.url]).check()
        built = run.stdout.strip()
        assert nix.physical(built, run.store).read_text() == "built\n"
        assert proxy.status()["counters"]["unknown"] > 0
    ghcr.server.start()


@pytest.mark.needs("nix")
def test_nix_builds_on_where_a_nar_is_gone(
    ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """A narinfo whose bytes the registry lost is a 404 for the NAR: Nix builds instead."""
    path = nix.build_expression(BUILDABLE).check().stdout.strip()
    put(ghcr, read_objects(nix, [path]), [key])
    ghcr.server.fault("blob-get", "status", status=404, times=None, skip=1)  # the table is read before it
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        run = nix.build_expression(
            BUILDABLE,
            substituters=[proxy.url],
            trusted_keys=[str(key.public_key)],
            store=nix.new_store(),
        ).check()
        assert nix.physical(path, run.store).read_text() == "built\n"
        counters = proxy.status()["counters"]
        assert counters["hits"] == 1
        assert counters["nars_refused"] >= 1

"""gc and pins by the real program, on real registries: what is dropped is gone, what is kept is whole."""

import random
import time
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine, Ran
from tests.support.registries import AnyRegistry, Ghcr, docker_registry

pytestmark = pytest.mark.needs("nix", "docker-registry")

PATHS = 30
MIB = 1_000_000
AT_ONCE = ("--min-age-hours", "0", "--retention-days", "0", "--grace-days", "0")
A_SECOND = 1.1  # times are told to the second


def machine_of(registry: AnyRegistry, nix: NixSandbox, key: SecretKey, tmp_path: Path) -> Machine:
    settings = {**settings_of(registry, tmp_path), "NIX_SIGNING_KEY": key.render()}
    return Machine(tmp_path / "machine", nix, settings)


def collect_all(machine: Machine) -> list[Ran]:
    """Mark, unlist and delete, with no time between."""
    runs = []
    for _ in range(3):
        time.sleep(A_SECOND)
        runs.append(machine.run("gc", *AT_ONCE, "--force").check())
    return runs


def test_disk_usage_falls_by_what_was_dropped(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """Roots, pins and their closures stay and substitute; after garbage-collect the rest takes no room."""
    kept = [
        *nix.build_paths(PATHS, seed="kept"),
        nix.build_file("large", random.Random(1).randbytes(3 * MIB)),
    ]
    pinned = nix.build_file("pinned", random.Random(2).randbytes(2 * MIB))
    dropped = nix.build_file("dropped", random.Random(3).randbytes(5 * MIB))
    with docker_registry() as registry:
        machine = machine_of(registry, nix, key, tmp_path)
        machine.run("push", *kept, "--root", "kept").check()
        machine.run("push", dropped, pinned, "--root", "moving").check()
        machine.run("pin", "create", "release-1.0", pinned, "--keep-days", "7").check()
        time.sleep(A_SECOND)
        machine.run("push", kept[0], "--root", "moving").check()
        before = registry.server.disk_usage()
        first, _, last = collect_all(machine)
        assert "rewrite" in first.stdout
        # The segment, and a former version of the index that listed it.
        assert "2 manifests deleted" in last.stdout
        registry.server.stop()
        registry.server.garbage_collect()
        registry.server.start()
        freed = before - registry.server.disk_usage()
        assert 0.95 * 5 * MIB < freed < 1.05 * 5 * MIB
        told = settings_of(registry, tmp_path)
        with ProxyProcess(tmp_path / "proxy", **told, NIXCACHE_PUBLIC_KEYS=str(key.public_key)) as proxy:
            proxy.wait_ready()
            trusted = [str(key.public_key)]
            nix.realise([*kept, pinned], substituters=[proxy.url], trusted_keys=trusted).check()
        assert machine.run("info", dropped).status == 1


def test_pins_are_listed_and_removed(ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """What is not in the cache cannot be pinned, and what is not pinned cannot be removed."""
    machine = machine_of(ghcr, nix, key, tmp_path)
    path, other = nix.build_paths(2)
    machine.run("push", path).check()
    refused = machine.run("pin", "create", "release", other)
    assert (refused.status, "publish it first" in refused.stderr) == (1, True)
    machine.run("pin", "create", "release", path, "--keep-revisions", "3").check()
    assert "for 3 revisions" in machine.run("pin", "list").check().stdout
    unknown = machine.run("pin", "remove", "other")
    assert (unknown.status, "there are: release" in unknown.stderr) == (1, True)
    machine.run("pin", "remove", "release").check()
    assert machine.run("pin", "list").check().stdout == ""

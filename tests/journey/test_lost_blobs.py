"""A registry that remembers blobs which its storage has lost, as Debian's docker-registry does."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import REPO, RunningRegistry

pytestmark = pytest.mark.needs("nix", "docker-registry")

MIB = 1024 * 1024
AT_ONCE = ("--min-age-hours", "0", "--retention-days", "0", "--grace-days", "0", "--force")


@pytest.fixture
def registry() -> Iterator[RunningRegistry[DockerRegistry]]:
    with DockerRegistry(auth=True, remembers_blobs=True) as server:
        yield RunningRegistry(server, server.user, server.password)


@pytest.fixture
def machine(
    registry: RunningRegistry[DockerRegistry], nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> Machine:
    settings = {**settings_of(registry, tmp_path), "NIX_SIGNING_KEY": key.render()}
    return Machine(tmp_path / "machine", nix, settings)


def large(nix: NixSandbox, seed: int) -> str:
    return nix.build_file(f"large-{seed}", random.Random(seed).randbytes(MIB))


def blob_of(machine: Machine, path: str) -> str:
    lines = machine.run("info", path).check().stdout.splitlines()
    url = next(line for line in lines if line.startswith("URL: nar/"))
    return url.removeprefix("URL: nar/").partition(".")[0]


def test_what_a_head_claims_is_read_before_it_is_counted_on(
    registry: RunningRegistry[DockerRegistry], machine: Machine, nix: NixSandbox, key: SecretKey
) -> None:
    """A path that gc forgot and the registry's collector took is sent again, bytes and all."""
    old, new = large(nix, 1), large(nix, 2)
    machine.run("push", "--root", "x", old).check()
    lost = blob_of(machine, old)
    machine.run("push", "--root", "x", new).check()
    for _ in range(20):  # times are told to the second: until a mark is older than none
        if lost not in registry.server.garbage_collect() or machine.run("gc", *AT_ONCE).status:
            pass
        if not list(registry.server.data.rglob(f"{lost}/data")):
            break
    else:
        pytest.fail("it was not collected")
    machine.run("push", "--root", "x", old).check()
    with ProxyProcess(machine.folder / "proxy", **settings_of(registry, machine.folder)) as proxy:
        proxy.wait_ready()
        nix.realise([old], substituters=[proxy.url], trusted_keys=[str(key.public_key)]).check()


def test_one_lost_blob_is_one_problem(
    registry: RunningRegistry[DockerRegistry], machine: Machine, nix: NixSandbox, tmp_path: Path
) -> None:
    """It is named with its path by every verb that meets it, the rest goes on, and repair sends it again."""
    lost, kept = large(nix, 1), large(nix, 2)
    machine.run("push", lost, kept, *nix.build_paths(3)).check()
    registry.server.lose_blob(blob_of(machine, lost))
    for arguments in (["verify"], ["verify", "--content"], ["verify", "--repair", "--dry-run"]):
        found = machine.run(*arguments)
        assert found.status == 1
        assert f"{lost}: blob " in found.stdout, found.stderr
        assert "1 problem" in found.stderr
        assert kept not in found.stdout
    exported = machine.run("export", str(tmp_path / "flat"))
    assert exported.status == 1
    assert f"{lost}: " in exported.stderr
    assert "4 paths written, 0 already there, 1 failed" in exported.stdout
    source = f"{registry.server.host}/{REPO}/nix-cache"
    for _ in range(2):
        mirrored = machine.run("mirror", source, f"oci:{tmp_path / 'copy'}")
        assert mirrored.status == 1
        assert f"{lost}: " in mirrored.stderr
        listed = machine.run("list", NIXCACHE_REGISTRY=f"oci:{tmp_path / 'copy'}").check().stdout
        assert len(listed.splitlines()) == 4
    assert machine.run("verify", NIXCACHE_REGISTRY=f"oci:{tmp_path / 'copy'}").status == 0
    repaired = machine.run("verify", "--repair")
    assert repaired.status == 0, repaired.stdout + repaired.stderr
    assert f"restored {lost}" in repaired.stdout
    assert machine.run("verify", "--content").check().stdout == ""

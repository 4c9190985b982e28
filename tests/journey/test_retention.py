"""Retention rules and clean-up jobs delete segments that no gc condemned: every writer goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine
from tests.support.registries import REPO, RunningRegistry, docker_registry

pytestmark = pytest.mark.needs("nix", "docker-registry")

PATHS = 4


@pytest.fixture
def registry() -> Iterator[RunningRegistry[DockerRegistry]]:
    with docker_registry() as running:
        yield running


@pytest.fixture
def machine(
    registry: RunningRegistry[DockerRegistry], nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> Machine:
    settings = {**settings_of(registry, tmp_path), "NIX_SIGNING_KEY": key.render()}
    return Machine(tmp_path / "machine", nix, settings)


class Rule:
    """A retention rule, which deletes the segment that was there first.

    Args:
        registry: where.
    """

    def __init__(self, registry: RunningRegistry[DockerRegistry]) -> None:
        reference = RegistryReference.of(registry.server.host, REPO, "nix-cache")
        credentials = Credentials(registry.user, registry.password, "the test")
        self._client = Registry(reference, credentials, push=True, delete=True, patience=20)
        self._tag = ""

    async def choose(self) -> None:
        """Remember the only segment."""
        [self._tag] = [tag for tag in await self._client.list_tags() if tag.startswith("segment-")]

    async def delete(self) -> None:
        remover = RegistryRemover(self._client)
        await remover.remove(Digest(self._tag.rpartition("-")[2]))
        await remover.close()


@pytest.mark.parametrize("collected", [False, True])
async def test_a_publish_goes_on_without_a_segment(
    registry: RunningRegistry[DockerRegistry], machine: Machine, nix: NixSandbox, *, collected: bool
) -> None:
    """It lists its own whole closure again, and what else can be read; the rest is counted in one line."""
    *needed, other = nix.build_paths(PATHS)
    rule = Rule(registry)
    machine.run("push", *needed, nix.build_file("alone", b"alone")).check()
    await rule.choose()
    machine.run("push", nix.build_file("another", b"another")).check()
    await rule.delete()
    if collected:
        registry.server.garbage_collect()
    pushed = machine.run("push", *needed, other).check()
    assert "is gone, although no gc deleted it" in pushed.stderr
    assert pushed.stderr.count("verify --repair") == 1
    listed = machine.run("list").check().stdout
    assert all(Path(path).name in listed for path in (*needed, other))
    assert ("-alone" in listed) is not collected
    assert machine.run("verify").status == 0
    machine.run("gc").check()
    assert "gone" not in machine.run("push", *needed, other).check().stderr


async def test_other_writers_go_on_too(
    registry: RunningRegistry[DockerRegistry], machine: Machine, nix: NixSandbox, tmp_path: Path
) -> None:
    """A mirror leaves it out, and whatever writes the index itself lists what is left."""
    gone, there = nix.build_file("gone", b"gone"), nix.build_file("there", b"there")
    rule = Rule(registry)
    machine.run("push", gone).check()
    await rule.choose()
    machine.run("push", there).check()
    await rule.delete()
    done = machine.run("mirror", f"{registry.server.host}/{REPO}/nix-cache", f"oci:{tmp_path / 'copy'}")
    assert (done.status, "1 path left out" in done.stdout) == (1, True)
    machine.run("pin", "create", "release", there).check()
    listed = machine.run("list").check().stdout
    assert Path(gone).name in listed
    assert Path(there).name in listed
    assert machine.run("verify").status == 0
    machine.run("gc").check()


async def test_a_publish_of_the_same_paths_mends_it_too(
    registry: RunningRegistry[DockerRegistry], machine: Machine, nix: NixSandbox
) -> None:
    """It has nothing new: but what its closure needs is gone, and does not count as listed."""
    path = nix.build_file("needed", b"needed")
    rule = Rule(registry)
    machine.run("push", path).check()
    await rule.choose()
    await rule.delete()
    registry.server.garbage_collect()
    pushed = machine.run("push", path).check()
    assert "1 path: 0 upstream, 0 cached, 1 to push" in pushed.stderr
    assert Path(path).name in machine.run("list").check().stdout
    assert machine.run("verify", "--content").status == 0
    assert "nothing written" in machine.run("push", path).check().stdout

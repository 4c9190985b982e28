"""``verify --repair`` by the real program: mended from the local store, or unlisted; and gc goes on."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import docker_registry

pytestmark = pytest.mark.needs("nix", "docker-registry")

PATHS = 6
MIB = 1024 * 1024
GC = ("gc", "--min-age-hours", "0", "--force")


@pytest.fixture(params=["docker-registry", "layout"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """A repository of either kind; gives its settings, and the folder with its blobs."""
    if request.param == "layout":
        yield {"NIXCACHE_REGISTRY": f"oci:{tmp_path / 'layout'}"}, tmp_path / "layout"
        return
    with docker_registry() as registry:
        yield settings_of(registry, tmp_path), registry.server.data


in_a_layout = pytest.mark.parametrize("place", ["layout"], indirect=True)
in_a_registry = pytest.mark.parametrize("place", ["docker-registry"], indirect=True)


@pytest.fixture
def machine(place: tuple[dict[str, str], Path], nix: NixSandbox, key: SecretKey, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", nix, {**place[0], "NIX_SIGNING_KEY": key.render()})


@pytest.fixture
def paths(nix: NixSandbox) -> list[str]:
    """Some that refer to each other, for a pack, and one that is a blob of its own."""
    return [*nix.build_paths(PATHS), nix.build_file("large", random.Random(1).randbytes(MIB))]


def blob_files(folder: Path) -> list[Path]:
    """Files of blobs that are no JSON and no table: packs and NARs, the largest first."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and (path.name == "data" or path.parent.name == "sha256")
    ]
    return sorted(
        (path for path in found if path.stat().st_size > 4000), key=lambda path: path.stat().st_size
    )[::-1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def assert_served(
    machine: Machine, nix: NixSandbox, place: tuple[dict[str, str], Path], key: SecretKey, paths: list[str]
) -> None:
    """Real Nix gets all of them, into an empty store, and nothing else is listed."""
    listed = machine.run("list").check().stdout
    assert len(listed.splitlines()) == len(paths)
    with ProxyProcess(machine.folder / "proxy", **place[0]) as proxy:
        proxy.wait_ready()
        nix.realise(paths, substituters=[proxy.url], trusted_keys=[str(key.public_key)]).check()


@pytest.mark.parametrize(
    ("place", "damage"), [("docker-registry", "remove"), ("layout", "flip")], indirect=["place"]
)
def test_what_the_store_has_is_sent_again(
    machine: Machine,
    place: tuple[dict[str, str], Path],
    key: SecretKey,
    nix: NixSandbox,
    paths: list[str],
    damage: str,
) -> None:
    """A lost pack and a lost NAR, or wrong bytes in them: all is served again, and gc goes on."""
    machine.run("push", *paths).check()
    pack_and_nar = blob_files(place[1])[:2]
    for path in pack_and_nar:
        path.unlink() if damage == "remove" else flip(path)
    arguments = ["verify"] if damage == "remove" else ["verify", "--content"]
    assert machine.run(*arguments).status == 1
    dry = machine.run(*arguments, "--repair", "--dry-run")
    assert (dry.status, dry.stdout.count("would be restored")) == (1, len(paths))
    done = machine.run(*arguments, "--repair")
    assert done.status == 0, done.stdout + done.stderr
    assert done.stdout.count("\nrestored ") == len(paths)
    assert "unlisted" not in done.stdout
    assert machine.run("verify", "--content").check().stdout == ""
    machine.run(*GC).check()
    assert_served(machine, nix, place, key, paths)


def test_a_lost_manifest(
    machine: Machine, nix: NixSandbox, place: tuple[dict[str, str], Path], key: SecretKey, paths: list[str]
) -> None:
    """Some registries take no index then, so nobody can publish: the segment is written anew first.

    Its tag goes, too: gc stops at a tag without a manifest. What else it lost is sent again.
    """
    machine.run("push", *paths).check()
    (manifest,) = (
        path
        for path in place[1].rglob("*")
        if path.is_file() and b'"artifactType":"application/vnd.nixcache' in path.read_bytes()[:1000]
    )
    manifest.unlink()
    blob_files(place[1])[0].unlink()
    assert "its manifest is gone" in machine.run("verify").stdout
    assert machine.run(*GC).status == 1
    done = machine.run("verify", "--repair")
    assert done.status == 0, done.stdout + done.stderr
    assert f"\nrestored {paths[-1]}" in done.stdout
    machine.run(*GC).check()
    assert machine.run("verify", "--content").check().stdout == ""
    assert_served(machine, nix, place, key, paths)


@in_a_layout
def test_a_dangling_reference_and_a_bad_signature(
    machine: Machine, place: tuple[dict[str, str], Path], key: SecretKey, nix: NixSandbox, paths: list[str]
) -> None:
    """What is referred to is sent, and what nobody who is known signed is signed."""
    machine.run("push", paths[-2], "--no-closure").check()
    stranger = SecretKey.generate("stranger-1").render()
    machine.run("push", paths[-1], "--new-key", NIX_SIGNING_KEY=stranger).check()
    told = {"NIXCACHE_PUBLIC_KEYS": str(key.public_key)}
    found = machine.run("verify", **told).stdout
    assert "neither here nor upstream" in found
    assert f"{paths[-1]}: no known key signed it" in found
    done = machine.run("verify", "--repair", **told)
    assert done.status == 0, done.stdout + done.stderr
    assert "signed again" in done.stdout
    assert_served(machine, nix, place, key, paths)


@in_a_registry
def test_a_tag_without_its_manifest_is_taken_away(
    machine: Machine, nix: NixSandbox, place: tuple[dict[str, str], Path], paths: list[str]
) -> None:
    """What gc refuses to run on is a problem of verify, and repair mends it, though no index lists it."""
    machine.run("push", *paths[:3]).check()
    [tag] = place[1].rglob("_manifests/tags/segment-*")
    for lost in place[1].rglob(f"_manifests/revisions/sha256/{tag.name[-64:]}"):
        shutil.rmtree(lost)
    # The publish's index does not list what is gone: its tag is all that is left of it.
    machine.run("push", nix.build_file("new", b"new")).check()
    refused = machine.run(*GC)
    assert refused.status == 1
    assert "verify --repair" in refused.stderr
    found = machine.run("verify")
    assert (found.status, tag.name in found.stdout) == (1, True)
    repaired = machine.run("verify", "--repair")
    assert repaired.status == 0, repaired.stdout + repaired.stderr
    assert not tag.exists()
    machine.run(*GC).check()
    assert machine.run("verify").status == 0

"""A whole cache in another repository: registry to registry, to a layout and back, by the real program."""

import base64
import json
import random
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.nix.signature import SecretKey
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import push_with, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish
from tests.support.publisher import Machine, assert_substitutable
from tests.support.registries import REPO, Ghcr, RunningRegistry, docker_registry
from tests.support.skopeo import skopeo_copy

pytestmark = pytest.mark.needs("nix", "docker-registry")

PATHS = 10
MIB = 1024 * 1024
AT_ONCE = ("--min-age-hours", "0", "--retention-days", "0", "--grace-days", "0")
A_SECOND = 1.1  # times are told to the second


@pytest.fixture
def paths(nix: NixSandbox) -> list[str]:
    return [*nix.build_paths(PATHS), nix.build_file("large", random.Random(1).randbytes(3 * MIB))]


@pytest.fixture
def machine(ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path, paths: list[str]) -> Machine:
    """Has published to the double of GHCR, in two segments."""
    settings = {**settings_of(ghcr, tmp_path), "NIX_SIGNING_KEY": key.render()}
    machine = Machine(tmp_path / "machine", nix, settings)
    machine.run("push", *paths[:5]).check()
    machine.run("push", *paths).check()
    return machine


def log_in(machine: Machine, host: str, user: str, password: str) -> None:
    """What ``docker login`` leaves."""
    folder = machine.folder / "docker"
    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    machine.environment["DOCKER_CONFIG"] = str(folder)


def test_a_cache_goes_from_registry_to_registry_to_layout(
    ghcr: Ghcr, machine: Machine, key: SecretKey, tmp_path: Path, paths: list[str]
) -> None:
    """It is served completely from each; nothing is sent twice; the index keeps its digest."""
    source = f"{ghcr.server.host}/{REPO}/nix-cache"
    layout = f"oci:{tmp_path / 'layout'}"
    with docker_registry() as other:
        middle = f"{other.server.host}/mirrored/cache"
        log_in(machine, other.server.host, other.user, other.password)
        first = machine.run("mirror", source, middle).check()
        assert "2 segments; " in first.stdout
        assert " 0 blobs sent" in machine.run("mirror", source, middle).check().stdout
        machine.run("mirror", middle, layout).check()
    with ProxyProcess(
        tmp_path / "proxy", NIXCACHE_REGISTRY=layout, NIXCACHE_PUBLIC_KEYS=str(key.public_key)
    ) as proxy:
        assert proxy.wait_ready()["entries"] == len(paths)
        assert_substitutable(proxy, paths)
    tags = ghcr.server.tags(f"{REPO}/nix-cache")
    index = (tmp_path / "layout" / "index.json").read_text()
    assert all(tag in index and str(digest) in index for tag, digest in tags.items())


@pytest.mark.needs("skopeo")
def test_what_gc_left_is_copied_whole(
    nix: NixSandbox, key: SecretKey, tmp_path: Path, paths: list[str]
) -> None:
    """Merged, rewritten, condemned and deleted segments: real Nix gets the rest from each copy."""
    kept, dropped = paths[1:], nix.build_file("dropped", random.Random(2).randbytes(MIB))
    with DockerRegistry(auth=False) as source:
        machine = Machine(tmp_path / "machine", nix, {"NIX_SIGNING_KEY": key.render(), **at(source.host)})
        running = RunningRegistry(source, "nobody", "nothing")
        objects = [one.signed(key) for one in read_objects(nix, [*kept, dropped])]
        for number, one in enumerate(objects):  # more than gc leaves unmerged
            root = one.narinfo.store_path
            created = now() - timedelta(days=1) + number * timedelta(hours=1)
            record = PublishRecord(f"push/{root.name}", "1", created, ((root.name, root),), is_partial=True)
            push_with(running, partial(publish, objects=[one], created=created, keys=[key], records=[record]))
        machine.run("push", kept[0], "--root", "dropped").check()
        plans = []
        for _ in range(3):  # mark, unlist, delete
            time.sleep(A_SECOND)
            plans.append(machine.run("gc", *AT_ONCE, "--force").check().stdout)
        assert "merge" in plans[0]
        assert "0 manifests deleted" not in plans[2]
        source.stop()
        source.garbage_collect()
        source.start()
        name = f"{source.host}/{REPO}/nix-cache"
        for copier in ("skopeo", "mirror"):
            layout = f"oci:{tmp_path / copier}"
            with DockerRegistry(auth=False) as other:
                if copier == "skopeo":
                    for target in (f"docker://{other.host}/{REPO}/nix-cache", layout):
                        skopeo_copy(f"docker://{name}:cache-index", f"{target}:cache-index", "--all")
                else:
                    for target in (f"{other.host}/{REPO}/nix-cache", layout):
                        machine.run("mirror", name, target).check()
                trusted = [str(key.public_key)]
                assert_whole(machine, nix, kept, trusted, at(other.host))
                assert_whole(machine, nix, kept, trusted, {"NIXCACHE_REGISTRY": layout})


def assert_whole(
    machine: Machine, nix: NixSandbox, paths: list[str], trusted: list[str], settings: dict[str, str]
) -> None:
    """A proxy that knows nothing yet serves all of it to real Nix, and verify finds nothing wrong."""
    with (
        tempfile.TemporaryDirectory(dir=machine.folder) as folder,
        ProxyProcess(Path(folder), **settings) as proxy,
    ):
        proxy.wait_ready()
        nix.realise(paths, substituters=[proxy.url], trusted_keys=trusted).check()
    machine.run("verify", "--content", **settings).check()


def at(host: str) -> dict[str, str]:
    return {"NIXCACHE_REGISTRY": host, "NIXCACHE_REPO": REPO}


def test_a_destination_with_more_keeps_it(
    ghcr: Ghcr, machine: Machine, nix: NixSandbox, tmp_path: Path, paths: list[str]
) -> None:
    """What only the destination has stays listed there; the token goes to no other registry.

    The token file is for the registry that the settings name; elsewhere one is anonymous.
    """
    source = f"{ghcr.server.host}/{REPO}/nix-cache"
    layout = f"oci:{tmp_path / 'layout'}"
    (own,) = nix.build_paths(1, seed="own")
    machine.run("push", own, NIXCACHE_REGISTRY=layout).check()
    machine.run("mirror", source, layout).check()
    listed = machine.run("list", NIXCACHE_REGISTRY=layout).check().stdout
    assert len(listed.splitlines()) == len(paths) + 1
    with docker_registry() as other:
        refused = machine.run("mirror", source, f"{other.server.host}/a/b")
        assert refused.status == 1
        assert "anonymously" in refused.stderr
        assert other.server.tokens.authorizations == {None}


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("oci:/nowhere/at/all", 1, "there is no cache"),
        ("ghcr.io", 2, "expected oci:/path"),
        ("oci:", 2, "path"),
    ],
)
def test_what_cannot_be_mirrored(
    nix: NixSandbox, tmp_path: Path, source: str, status: int, words: str
) -> None:
    """One line says so; an empty source is no reason to write an empty destination."""
    ran = Machine(tmp_path / "machine", nix, {}).run("mirror", source, f"oci:{tmp_path / 'layout'}")
    assert ran.status == status
    assert words in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "layout" / "index.json").exists()

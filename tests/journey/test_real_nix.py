"""The main job on real input: paths that Nix built go into a registry, and come out of the proxy into Nix."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import push_with, put, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject, publish_version1
from tests.support.registries import AnyRegistry, docker_registry, ghcr_double

pytestmark = pytest.mark.needs("nix", "docker-registry")

PATHS = 24
LARGE_BYTES = 700_000  # over the limit of a pack when compressed: it is random


@pytest.fixture(params=[2, 1])
def version(request: pytest.FixtureRequest) -> int:
    """Of the format."""
    return int(request.param)


@pytest.fixture
def registry(version: int) -> Iterator[AnyRegistry]:
    """Give each of two registries one of the versions."""
    if version == 1:
        with ghcr_double() as ghcr:
            yield ghcr
    else:
        with docker_registry() as docker:
            yield docker


@pytest.fixture
def settings(registry: AnyRegistry, tmp_path: Path) -> dict[str, str]:
    return settings_of(registry, tmp_path)


def put_version(registry: AnyRegistry, objects: list[StoreObject], key: SecretKey, version: int) -> None:
    """Publish in this version of the format."""
    if version == 1:
        signed = [one.signed(key) for one in objects]
        push_with(registry, lambda client: publish_version1(client, signed, public_key=str(key.public_key)))
    else:
        put(registry, objects, [key])


def test_what_nix_built_comes_back_byte_for_byte(
    registry: AnyRegistry,
    settings: dict[str, str],
    nix: NixSandbox,
    key: SecretKey,
    tmp_path: Path,
    version: int,
) -> None:
    """Signatures on, and only the cache's key trusted: Nix takes everything, and it is what was built."""
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(1).randbytes(LARGE_BYTES)))
    objects = read_objects(nix, paths)
    put_version(registry, objects, key, version)
    with ProxyProcess(
        tmp_path / "proxy",
        **settings,
        NIXCACHE_PUBLIC_KEYS=str(key.public_key),
    ) as proxy:
        assert proxy.wait_ready()["entries"] == PATHS + 1
        run = nix.realise(paths, substituters=[proxy.url], trusted_keys=[str(key.public_key)]).check()
        for path in paths:
            assert nix.dump(path, run.store) == nix.dump(path)
        assert proxy.ask("/public-key").body.decode() == f"{key.public_key}\n"
        # Another way through Nix, with HEAD requests.
        trusting = nix.environment(substituters=[proxy.url], trusted_keys=[str(key.public_key)])
        target = nix.new_store()
        nix.run("nix", "copy", "--from", proxy.url, "--to", str(target), *paths, environment=trusting).check()
        assert nix.dump(paths[-1], target) == nix.dump(paths[-1])
    assert proxy.process.returncode == 0
    assert registry.password not in proxy.log


def test_nix_refuses_what_another_key_signed(
    registry: AnyRegistry,
    settings: dict[str, str],
    nix: NixSandbox,
    key: SecretKey,
    tmp_path: Path,
    version: int,
) -> None:
    """Trust lies in the key alone; and with keys configured, the proxy does not even list the path."""
    paths = nix.build_paths(1)
    other = SecretKey.generate("other-1")
    put_version(registry, read_objects(nix, paths), other, version)
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        run = nix.realise(paths, substituters=[proxy.url], trusted_keys=[str(key.public_key)])
        assert run.returncode != 0
        assert nix.run("nix-store", "--check-validity", paths[0], store=run.store).returncode != 0
    with ProxyProcess(tmp_path / "strict", **settings, NIXCACHE_PUBLIC_KEYS=str(key.public_key)) as proxy:
        assert proxy.wait_ready()["entries"] == 1
        assert proxy.ask(f"/{Path(paths[0]).name[:32]}.narinfo").status == 404


def test_unsigned_paths_need_a_content_address(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """Nix refuses an unsigned path, and takes one whose path follows from its content."""
    [built] = nix.build_paths(1)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content-addressed\n")
    added = nix.add_path(source)
    trusted = [str(key.public_key)]
    with docker_registry() as registry:
        put(registry, read_objects(nix, [built, added]))
        settings = settings_of(registry, tmp_path)
        with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
            proxy.wait_ready()
            assert nix.realise([built], substituters=[proxy.url], trusted_keys=trusted).returncode != 0
            run = nix.realise([added], substituters=[proxy.url], trusted_keys=trusted).check()
            assert nix.dump(added, run.store) == nix.dump(added)
        with ProxyProcess(tmp_path / "strict", **settings, NIXCACHE_PUBLIC_KEYS=trusted[0]) as proxy:
            proxy.wait_ready()
            assert proxy.ask(f"/{Path(built).name[:32]}.narinfo").status == 404
            nix.realise([added], substituters=[proxy.url], trusted_keys=trusted).check()

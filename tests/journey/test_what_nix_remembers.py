"""What users see when a cache changes under Nix, which remembers answers, and the cure in troubleshooting.md.

By a cache's URL Nix keeps a narinfo for 30 days, and a miss as long as ``narinfo-cache-negative-ttl`` says.
"""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.signature import SecretKey
from tests.support.nix import NixRun, NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.programs import require_program
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject, publish

pytestmark = pytest.mark.needs("nix")

POSITIVE = ["--option", "narinfo-cache-positive-ttl", "0"]
NEGATIVE = ["--option", "narinfo-cache-negative-ttl", "0"]
FIRST, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
MOST_SECONDS = 30


def put(
    cache: Path, objects: Sequence[StoreObject], created: datetime = FIRST, keys: Sequence[SecretKey] = ()
) -> None:
    """Publish into an OCI layout, signed by every key."""
    signed = [one.signed(*keys) for one in objects]

    async def run() -> None:
        layout = Layout(cache)
        try:
            await publish(layout, signed, keys=keys, created=created)
        finally:
            await layout.close()

    asyncio.run(run())


def serve(cache: Path, **settings: str) -> ProxyProcess:
    folder = cache.with_name(f"{cache.name} proxy")
    return ProxyProcess(folder, NIXCACHE_REGISTRY=f"oci:{cache}", **settings)


def realise(nix: NixSandbox, path: str, environment: Mapping[str, str], *options: str) -> NixRun:
    """Substitute into an empty store, with what the machine of this environment remembers."""
    arguments = ["--realise", path, *options]
    return nix.run("nix-store", *arguments, store=nix.new_store(), environment=environment)


@contextlib.contextmanager
def daemon(environment: Mapping[str, str]) -> Iterator[None]:
    """Run a Nix daemon, whose settings are not those of its clients."""
    listening = Path(environment["NIX_STATE_DIR"]) / "daemon-socket/socket"
    program = require_program("nix-daemon")
    with subprocess.Popen([program], env=dict(environment), stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + MOST_SECONDS
            while not listening.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield
        finally:
            process.kill()


def test_a_path_that_is_signed_later(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """Nix remembers it without its signature; asked again, by an option or --refresh, it takes the path."""
    (path,) = nix.build_paths(1)
    objects = read_objects(nix, [path])
    put(tmp_path / "cache", objects)
    with serve(tmp_path / "cache") as proxy:
        proxy.wait_ready()
        trusted = [str(key.public_key)]
        machines = [nix.environment(substituters=[proxy.url], trusted_keys=trusted) for _ in range(2)]
        for environment in machines:
            assert realise(nix, path, environment).returncode != 0
        put(tmp_path / "cache", objects, LATER, [key])
        assert proxy.ask("/_refresh", method="POST").status == 200
        for environment in machines:
            refused = realise(nix, path, environment)
            assert refused.returncode != 0
            assert "not signed by any of the keys in 'trusted-public-keys'" in refused.stderr
        realise(nix, path, machines[0], *POSITIVE).check()
        arguments = ["build", "--no-link", "--refresh", path]
        nix.run("nix", *arguments, store=nix.new_store(), environment=machines[1]).check()
        for environment in machines:
            realise(nix, path, environment).check()


@pytest.mark.needs("nix-daemon")
def test_refresh_and_a_daemon(key: SecretKey, tmp_path: Path) -> None:
    """`--refresh` stays with the client; the option goes on to a daemon that trusts the user."""
    nix = NixSandbox(tmp_path / "nix", store_dir=tmp_path / "nix/store")
    (path,) = nix.build_paths(1)
    objects = read_objects(nix, [path])
    put(tmp_path / "cache", objects)
    with serve(tmp_path / "cache", NIXCACHE_STORE_DIR=nix.store_dir) as proxy:
        proxy.wait_ready()
        environment = nix.environment(
            substituters=[proxy.url], trusted_keys=[str(key.public_key)], options={"trusted-users": "*"}
        )
        nix.run("nix-store", "--delete", path, environment=environment).check()
        conf = "extra-experimental-features = nix-command"
        client = {**environment, "NIX_REMOTE": "daemon", "NIX_CONFIG": conf}
        with daemon(environment):
            assert nix.run("nix-store", "--realise", path, environment=client).returncode != 0
            put(tmp_path / "cache", objects, LATER, [key])
            assert proxy.ask("/_refresh", method="POST").status == 200
            refused = nix.run("nix", "build", "--no-link", "--refresh", path, environment=client)
            assert refused.returncode != 0
            assert "not signed by any of the keys" in refused.stderr
            nix.run("nix-store", "--realise", path, *POSITIVE, environment=client).check()


def test_a_repository_switched_behind_the_port(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """Nix looks for NARs of the old one, and for nothing that only the new one has, until it asks again."""
    both, new = nix.build_paths(1, seed="both")[0], nix.build_paths(1, seed="new")[0]
    put(tmp_path / "old", read_objects(nix, [both]), FIRST, [key])
    # In one pack, so that its NARs have other addresses.
    put(tmp_path / "new", read_objects(nix, [both, new]), FIRST, [key])
    with serve(tmp_path / "old") as proxy:
        proxy.wait_ready()
        environment = nix.environment(
            substituters=[proxy.url],
            trusted_keys=[str(key.public_key)],
            options={"narinfo-cache-negative-ttl": "300"},
        )
        realise(nix, both, environment).check()
        assert realise(nix, new, environment).returncode != 0
        port = proxy.url.rpartition(":")[2]
    with serve(tmp_path / "new", NIXCACHE_PORT=port) as proxy:
        proxy.wait_ready()
        gone = realise(nix, both, environment)
        assert gone.returncode != 0
        assert "does not exist in binary cache" in gone.stderr
        assert realise(nix, new, environment).returncode != 0
        realise(nix, both, environment, *POSITIVE).check()
        realise(nix, new, environment, *NEGATIVE).check()

"""Publishers beside each other, killed, and swept behind: nothing that was published is ever lost."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.descriptor import EMPTY_CONFIG
from tests.support.ghcr import GhcrDouble
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine, assert_substitutable
from tests.support.registries import AnyRegistry, docker_registry, ghcr_double

pytestmark = [pytest.mark.needs("nix", "docker-registry"), pytest.mark.usefixtures("unmeasured")]

PUBLISHERS = 8
PATHS = 50
ROUNDS = 3
KILLS = 5
MERGING = 24
MERGED_PATHS = 8
MERGING_ROUNDS = 5
TURNS = 8
# `make soak` takes all rounds.
IS_SOAK = bool(os.environ.get("NIXCACHE_SOAK"))
MOST_SECONDS = 300
CREATED = 201


@pytest.fixture(params=[docker_registry, ghcr_double])
def registry(request: pytest.FixtureRequest) -> Iterator[AnyRegistry]:
    with request.param() as running:
        yield running


@pytest.fixture
def settings(registry: AnyRegistry, key: SecretKey, tmp_path: Path) -> dict[str, str]:
    return {**settings_of(registry, tmp_path), "NIX_SIGNING_KEY": key.render()}


def proxy_settings(settings: dict[str, str], key: SecretKey, image: str) -> dict[str, str]:
    told = {name: value for name, value in settings.items() if name != "NIX_SIGNING_KEY"}
    return {**told, "NIXCACHE_IMAGE": image, "NIXCACHE_PUBLIC_KEYS": str(key.public_key)}


@pytest.mark.timeout(600)
def test_eight_publishers_at_once_lose_nothing(
    settings: dict[str, str], nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Three times over, all begin together on an empty repository; a fresh proxy has every path each time."""
    shared = nix.build_paths(PATHS // 2, seed="shared")
    own = [nix.build_paths(PATHS // 2, seed=f"publisher-{number}") for number in range(PUBLISHERS)]
    everything = [*shared, *(path for paths in own for path in paths)]
    for number in range(ROUNDS):
        image = f"round-{number}"
        machines = [Machine(tmp_path / f"{image}-{one}", nix, settings) for one in range(PUBLISHERS)]
        running = [
            machine.start("push", *shared, *paths, "--image", image, "--root", f"publisher-{one}")
            for one, (machine, paths) in enumerate(zip(machines, own, strict=True))
        ]
        for process in running:
            _, stderr = process.communicate(timeout=MOST_SECONDS)
            assert process.returncode == 0, stderr
        with ProxyProcess(tmp_path / f"proxy-{number}", **proxy_settings(settings, key, image)) as proxy:
            proxy.wait_ready()
            assert_substitutable(proxy, everything)
            if number == ROUNDS - 1:
                trusted = [str(key.public_key)]
                nix.realise(everything, substituters=[proxy.url], trusted_keys=trusted).check()


@pytest.mark.timeout(900)
def test_racing_publishers_that_merge_lose_nothing(
    settings: dict[str, str], nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Enough at once that several merge beside the others: every path is there, and verify finds no fault."""
    own = [nix.build_paths(MERGED_PATHS, seed=f"publisher-{number}") for number in range(MERGING)]
    for number in range(MERGING_ROUNDS if IS_SOAK else 1):
        image = f"round-{number}"
        everything = [path for paths in own for path in paths]
        machines = [Machine(tmp_path / f"{image}-{one}", nix, settings) for one in range(MERGING)]
        running = [
            machine.start("push", *paths, "--image", image, "--root", f"publisher-{one}")
            for one, (machine, paths) in enumerate(zip(machines, own, strict=True))
        ]
        said = ""
        for process in running:
            _, stderr = process.communicate(timeout=MOST_SECONDS)
            assert process.returncode == 0, stderr
            said += stderr
        # Whose turn it was may have passed while they raced.
        for one in range(TURNS):
            if "merged " in said:
                break
            path = nix.build_file(f"more-{number}-{one}", b"more")
            said += machines[0].run("push", path, "--image", image).check().stderr
            everything.append(path)
        assert "segments into one of" in said
        checked = machines[0].run("verify", "--image", image, NIX_SIGNING_KEY="").check()
        assert "0 problems" in checked.stderr
        with ProxyProcess(tmp_path / f"proxy-{number}", **proxy_settings(settings, key, image)) as proxy:
            proxy.wait_ready()
            assert_substitutable(proxy, everything)
            assert proxy.status()["segments"] <= MERGING


@pytest.mark.timeout(600)
def test_killed_anywhere_it_is_whole_or_not_there(
    registry: AnyRegistry, settings: dict[str, str], nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Killed at five moments, the cache has all of it or nothing, and the next run completes it."""
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(1).randbytes(3_000_000)))
    machine = Machine(tmp_path / "machine", nix, settings)
    began = time.monotonic()
    machine.run("push", *paths, "--image", "unhurried").check()
    usual = time.monotonic() - began
    moments = random.Random(2)
    for number in range(KILLS):
        image = f"kill-{number}"
        process = machine.start("push", *paths, "--image", image)
        try:
            process.wait(moments.uniform(0.3, 1) * usual)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        with ProxyProcess(tmp_path / f"proxy-{number}", **proxy_settings(settings, key, image)) as proxy:
            proxy.wait_until(lambda status: status["index"]["age_seconds"] is not None)
            listed = proxy.status()["entries"]
            assert listed in (0, len(paths))
            if listed:
                assert_substitutable(proxy, paths)
        again = machine.run("push", *paths, "--image", image).check()
        assert f"{len(paths) - listed} to push" in again.stderr
        with ProxyProcess(tmp_path / f"again-{number}", **proxy_settings(settings, key, image)) as proxy:
            proxy.wait_ready()
            assert_substitutable(proxy, paths)
        assert_nothing_was_sent_twice(registry, image)


def test_a_registrys_collector_takes_nothing(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """Every byte is reachable from a tag: garbage-collect, with and without -m, leaves every path whole."""
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(1).randbytes(3_000_000)))
    with docker_registry() as registry:
        settings = {**settings_of(registry, tmp_path), "NIX_SIGNING_KEY": key.render()}
        machine = Machine(tmp_path / "machine", nix, settings)
        for some in (paths[:20], paths):
            machine.run("push", *some).check()
        with ProxyProcess(
            tmp_path / "proxy",
            **proxy_settings(settings_of(registry, tmp_path), key, "nix-cache"),
        ) as proxy:
            proxy.wait_ready()
            for untagged in (False, True):
                registry.server.stop()
                registry.server.garbage_collect(untagged=untagged)
                registry.server.start()
                assert_substitutable(proxy, paths)


def assert_nothing_was_sent_twice(registry: AnyRegistry, image: str) -> None:
    """No blob was taken in more than once by the double, which writes all requests down."""
    if isinstance(registry.server, GhcrDouble):
        taken = Counter(
            record.path.rpartition("digest=")[2]
            for record in registry.server.requests
            if record.operation == "upload-put" and f"/{image}/" in record.path and record.status == CREATED
        )
        taken.pop(quote(str(EMPTY_CONFIG.digest), safe=""), None)
        assert taken
        assert max(taken.values()) == 1, taken

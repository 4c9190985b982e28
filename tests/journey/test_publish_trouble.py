"""What goes wrong for a publisher: one line with the remedy, a status that tells, nothing half-listed."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import push_with, settings_of
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine
from tests.support.registries import Ghcr

pytestmark = pytest.mark.needs("nix")

PATHS = 5
LARGE_BYTES = 6_000_000
MIB = 1024 * 1024


@pytest.fixture
def paths(nix: NixSandbox) -> list[str]:
    return [*nix.build_paths(PATHS), nix.build_file("large", random.Random(1).randbytes(LARGE_BYTES))]


@pytest.fixture
def machine(ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path) -> Machine:
    settings = {**settings_of(ghcr, tmp_path), "NIX_SIGNING_KEY": key.render()}
    return Machine(tmp_path / "machine", nix, settings)


def listed(ghcr: Ghcr) -> int:
    """How many paths the cache lists."""
    counts: list[int] = []

    async def count(repository: Repository) -> None:
        listing = await read_listing(repository)
        counts.append(sum(segment.paths for segment in listing.segments))

    push_with(ghcr, count)
    return counts[0]


def assert_refused(ghcr: Ghcr, machine: Machine, paths: list[str], *words: str) -> None:
    """One line at the end says it all, nothing is listed, and nothing staged stays behind."""
    ran = machine.run("push", *paths)
    last = ran.stderr.splitlines()[-1]
    assert ran.status == 1, ran.stderr
    assert last.startswith("nixcache-oci: error: ")
    for word in words:
        assert word in last
    assert "Traceback" not in ran.stderr
    assert "never retrieved" not in ran.stderr
    assert ghcr.password not in ran.stderr
    assert list(machine.folder.glob("nixcache-oci-*")) == []
    assert listed(ghcr) == 0


Trouble = Callable[[Ghcr, Machine], object]


def token(machine: Machine, text: str) -> None:
    Path(machine.environment["NIXCACHE_TOKEN_FILE"]).write_text(text)


def no_token(_ghcr: Ghcr, machine: Machine) -> None:
    del machine.environment["NIXCACHE_TOKEN_FILE"]


def setting(name: str, value: object) -> Trouble:
    """Have the registry behave so."""
    return lambda ghcr, _: setattr(ghcr.server, name, value)


TROUBLES: dict[str, tuple[Trouble, tuple[str, ...]]] = {
    "a token that nobody knows": (
        lambda _, machine: token(machine, "octocat:wrong"),
        ("NIXCACHE_TOKEN_FILE", "renew it"),
    ),
    "no token": (no_token, ("anonymously", "GITHUB_TOKEN")),
    "a token that may only read": (
        lambda ghcr, machine: token(machine, f"octocat:{ghcr.server.read_token}"),
        ("403", "write"),
    ),
    "a package of another repository": (
        setting("is_linked_elsewhere", value=True),
        ("linked to another repository", "/settings"),
    ),
    "a quota": (setting("quota", MIB), ("billing",)),
    "a limit that nobody told of": (setting("blob_limit", MIB), ("413", "NIXCACHE_MAX_BLOB_BYTES")),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_refusal_names_its_remedy(ghcr: Ghcr, machine: Machine, paths: list[str], trouble: str) -> None:
    """Where a wrong token came from, what to set, whom to ask; before or in the middle of a publish."""
    make, words = TROUBLES[trouble]
    make(ghcr, machine)
    assert_refused(ghcr, machine, paths, *words)


def test_a_corrupt_path(ghcr: Ghcr, machine: Machine, nix: NixSandbox, paths: list[str]) -> None:
    """It is refused by name, and so is what refers to it; the rest is published.

    With --strict nothing is listed then; a workflow's run is annotated with the reason.
    """
    victim = nix.physical(paths[1])
    victim.chmod(0o644)
    victim.write_text("another content")
    reason = f"{paths[1]}: its files do not match what the store recorded"
    strict = machine.run("push", *paths, "--strict", GITHUB_ACTIONS="true")
    assert (strict.status, listed(ghcr)) == (1, 0)
    assert f"::error::--strict: nothing is listed: {reason}" in strict.stderr
    ran = machine.run("push", *paths)
    assert (ran.status, reason in ran.stderr) == (1, True)
    # The first one, and the large one; all others refer to it.
    assert listed(ghcr) == 2


def test_interrupted(ghcr: Ghcr, machine: Machine, paths: list[str]) -> None:
    """At the end of a job: nothing is listed, nothing stays behind, and the next run completes it."""
    ghcr.server.bandwidth = MIB
    process = machine.start("push", *paths)
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: ghcr.server.count("upload-put") > 0)
    process.terminate()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "nixcache-oci: interrupted: what was sent is kept, and listed only if all of it was; " in stderr
    assert "Traceback" not in stderr
    assert list(machine.folder.glob("nixcache-oci-*")) == []
    assert listed(ghcr) == 0
    ghcr.server.bandwidth = None
    machine.run("push", *paths).check()
    assert listed(ghcr) == len(paths)


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID"])
def test_what_a_collector_took_is_sent_again(
    ghcr: Ghcr, machine: Machine, paths: list[str], code: str
) -> None:
    """Fresh blobs that no manifest names yet are swept: the manifest is refused, and they come again.

    Quay drops them after an hour, and says only that the manifest is invalid.
    """
    ghcr.server.missing_blob = (400, code)
    ghcr.server.latency = 0.05
    process = machine.start("push", *paths)
    wait_for(lambda: ghcr.server.count("upload-put") >= 3)
    assert ghcr.server.sweep()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "sending again what is missing" in stderr
    ghcr.server.latency = 0
    assert listed(ghcr) == len(paths)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until it is."""
    end = time.monotonic() + 20
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)

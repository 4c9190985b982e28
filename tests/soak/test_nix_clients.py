"""Real Nix clients, eight at once, while the registry is cut off every few seconds: every build succeeds."""

import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.reliability.results import Cell, write_suite
from tests.soak.far_side import outages
from tests.support.journey import put, settings_of
from tests.support.nix import NixRun, NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.proxy import ProxyProcess
from tests.support.registries import Ghcr

pytestmark = [pytest.mark.soak, pytest.mark.needs("nix")]

SECONDS = float(os.environ.get("SOAK_SECONDS", "600")) / 10
CLIENTS = 8
STEPS = 24
LARGE_BYTES = 400_000  # over the limit of a pack when compressed: it is random
SMALL_BYTES = 20_000
BANDWIDTH = 1_500_000  # bytes a second, so that an outage finds something under way
_SUITE = 71


@dataclass(frozen=True, slots=True)
class Weather:
    """How the registry fails; in seconds.

    Attributes:
        name: of it.
        up: the least and the most that it is there.
        down: the least and the most that it is away.
        may_build: whether Nix may build what it could not get.
    """

    name: str
    up: tuple[float, float]
    down: tuple[float, float]
    may_build: bool


SHORT = Weather("short outages", up=(1, 3), down=(0.1, 0.5), may_build=False)
MIDDLING = Weather("outages of some seconds", up=(1, 4), down=(4, 9), may_build=True)
LONG = Weather("long outages", up=(1, 2), down=(30, 45), may_build=True)


@dataclass(slots=True)
class Tally:
    """What came of all builds; ``asked_again`` counts the downloads that were tried once more."""

    builds: int = 0
    substituted: int = 0
    built: int = 0
    asked_again: int = 0

    def add(self, run: NixRun) -> None:
        built = len(re.findall(r"^building '", run.stderr, re.MULTILINE))
        self.builds += 1
        self.built += built
        self.substituted += STEPS - built
        self.asked_again += len(re.findall(r"^warning: .*; retrying", run.stderr, re.MULTILINE))


@pytest.fixture(scope="module")
def cells() -> Iterator[list[Cell]]:
    """Results, one for each weather."""
    found: list[Cell] = []
    yield found
    what = (
        f"{CLIENTS} clients of Nix 2.8 at once, each of which builds a chain of {STEPS} derivations into an"
        " empty store, again and again, with `fallback = true`. The registry is stopped again and again,"
        " with all its connections. What the cache gives in time is substituted, and the rest built."
    )
    write_suite(_SUITE, "Clients under outages", what, 3, found)


def chain(nix: NixSandbox) -> str:
    """Write an expression: each derivation takes a file of its own, and refers to the one before it."""
    chosen = random.Random("chain")
    lines = []
    for number in range(STEPS):
        size = LARGE_BYTES if number % 3 else SMALL_BYTES
        (nix._folder / "files" / f"step-{number}").write_bytes(chosen.randbytes(size))
        script = f"cat /files/step-{number} > $out; echo $previous >> $out"
        previous = f"step{number - 1}" if number else '""'
        lines.append(
            f'step{number} = derivation {{ name = "step-{number}"; system = builtins.currentSystem;'
            f' builder = "/bin/sh"; PATH = "/bin:/usr/bin"; previous = {previous};'
            f' args = [ "-euc" "{script}" ]; }};'
        )
    return f"let {' '.join(lines)} in step{STEPS - 1}"


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("weather", [SHORT, MIDDLING, LONG], ids=["short", "middling", "long"])
def test_every_build_succeeds(
    ghcr: Ghcr, nix: NixSandbox, key: SecretKey, cells: list[Cell], tmp_path: Path, weather: Weather
) -> None:
    """Short outages are not even noticed: all is substituted. In long ones Nix builds what it cannot get.

    Some seconds are in between: a NAR is refused, and Nix asks once more before it builds.
    """
    expression = chain(nix)
    last = nix.build_expression(expression).check().stdout.strip()
    closure = sorted(nix.path_info([last], recursive=True))
    assert len(closure) == STEPS
    put(ghcr, read_objects(nix, closure), [key])
    right = nix.dump(last)
    tally = Tally()

    def build_again_and_again(client: int) -> None:
        round_number = 0
        while time.monotonic() < end:
            round_number += 1
            store = tmp_path / f"client-{client}-{round_number}"
            run = nix.build_expression(
                expression,
                substituters=[proxy.url],
                trusted_keys=[str(key.public_key)],
                store=store,
                options={"fallback": "true"},
            )
            tally.add(run.check())
            assert nix.dump(last, store) == right
            assert sorted(nix.path_info([last], recursive=True, store=store)) == closure
            nix.run("nix-store", "--verify", "--check-contents", store=store).check()
            _remove(store)

    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.bandwidth = BANDWIDTH
        end = time.monotonic() + SECONDS
        with (
            outages(ghcr.server, up=weather.up, down=weather.down, seed=weather.name) as done,
            ThreadPoolExecutor(CLIENTS) as pool,
        ):
            list(pool.map(build_again_and_again, range(CLIENTS)))
        counters = proxy.status()["counters"]
        assert "Traceback" not in proxy.log
    seen = (
        f"all succeeded: {tally.substituted:,} paths substituted, {tally.built:,} built; {done.count} outages"
        f" of {done.seconds / max(1, done.count):.1f} s each; NARs cut: {counters['nars_cut']}, refused:"
        f" {counters['nars_refused']}, resumed by Nix: {tally.asked_again}"
    )
    print(f"{weather.name}: {tally.builds} builds, {seen}")  # noqa: T201  the figures are what this is run for
    cells.append(Cell(weather.name, tally.builds, seen))
    assert done.count > 0
    assert tally.substituted > 0
    assert weather.may_build or tally.built == 0


def _remove(store: Path) -> None:
    """Remove a store, whose folders Nix made read-only."""
    for folder, _, _ in os.walk(store):
        Path(folder).chmod(0o755)
    shutil.rmtree(store)

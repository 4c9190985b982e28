"""Publishers and collectors in a loop, while the registry fails at random: what was published stays.

The parts are those of ``tests/journey/test_publishers.py``; the trouble is that of the load.
"""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.reliability.results import Cell, write_suite
from tests.soak.chaos import Chaos, Pace
from tests.soak.far_side import FarSide
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine, assert_substitutable

pytestmark = [pytest.mark.soak, pytest.mark.needs("nix")]

SECONDS = float(os.environ.get("SOAK_SECONDS", "600")) / 4
SEED = os.environ.get("SOAK_SEED", "") or str(random.randrange(10**6))
PUBLISHERS = 3
GROUPS = 24
PATHS_OF_A_GROUP = 8
KILLED_SHARE = 0.1
LARGE_BYTES = 600_000
MOST_SECONDS = 600
_SUITE = 72
Running: TypeAlias = subprocess.Popen[str]


class Publishers:
    """What runs at once, and what came of it.

    Attributes:
        finished: paths of every publish that said it was done.
        ends: how often each verb ended how.
        troubled: the last words of what failed.
    """

    def __init__(self, far_side: FarSide, groups: list[list[str]], until: float) -> None:
        self._far_side = far_side
        self._groups = groups
        self._until = until
        self.finished: set[str] = set()
        self.ends: Counter[str] = Counter()
        self.troubled: list[str] = []

    async def publish(self, machine: Machine, number: int) -> None:
        """Push some paths again and again; now and then the process is killed."""
        chosen = random.Random(f"{SEED}-{number}")
        while time.monotonic() < self._until:
            groups = chosen.sample(self._groups, chosen.randint(1, 3))
            paths = [path for group in groups for path in group]
            process = machine.start("push", *paths, "--root", f"root-{number}-{chosen.randrange(4)}")
            kill_after = chosen.uniform(0.5, 3) if chosen.random() < KILLED_SHARE else None
            if await self._end("push", process, kill_after):
                self.finished |= set(paths)

    async def collect(self, machine: Machine) -> None:
        """Collect: the cache's garbage, and then the registry's own, in the middle of whatever goes on."""
        chosen = random.Random(f"{SEED}-gc")
        while time.monotonic() < self._until:
            await asyncio.sleep(chosen.uniform(1, 6))
            if await self._end("gc", machine.start("gc", "--min-age-hours", "0", "--force"), None):
                self.ends["registry's own sweep"] += 1
                self._far_side.do("sweep")

    async def _end(self, verb: str, process: Running, kill_after: float | None) -> bool:
        """Wait for the end, or bring it about; tells whether all was done."""
        waiting = asyncio.create_task(asyncio.to_thread(process.communicate, timeout=MOST_SECONDS))
        if kill_after is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), kill_after)
            process.send_signal(signal.SIGKILL)
        _, stderr = await waiting
        if process.returncode == -signal.SIGKILL:
            self.ends[f"{verb}: killed"] += 1
        elif process.returncode:
            self.ends[f"{verb}: failed"] += 1
            self.troubled.append(stderr[-300:])
        else:
            self.ends[f"{verb}: done"] += 1
        return process.returncode == 0


def make_groups(nix: NixSandbox) -> list[list[str]]:
    """Build closures to publish, each with a large file."""
    groups = [nix.build_paths(PATHS_OF_A_GROUP, seed=f"group-{number}") for number in range(GROUPS)]
    for number, group in enumerate(groups):
        content = random.Random(number).randbytes(LARGE_BYTES)
        group.append(nix.build_file(f"large-{number}", content))
    return groups


@pytest.mark.timeout(SECONDS + 900)
async def test_every_finished_publish_is_served_whole(
    nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Neither faults, kills, gcs nor the registry's own collector take a path of a finished publish."""
    groups = await asyncio.to_thread(make_groups, nix)
    (tmp_path / "nothing").mkdir()
    with FarSide(tmp_path / "nothing", tmp_path) as far_side:
        settings = settings_of(far_side, tmp_path)
        told = {**settings, "NIX_SIGNING_KEY": key.render()}
        machines = [Machine(tmp_path / f"machine-{number}", nix, told) for number in range(PUBLISHERS + 1)]
        chaos = Chaos(far_side, SEED, Pace(faults_per_second=2, outage_seconds=2, writes=0.7))
        publishers = Publishers(far_side, groups, time.monotonic() + SECONDS)
        trouble = asyncio.create_task(chaos.run())
        async with asyncio.TaskGroup() as group:
            for number in range(PUBLISHERS):
                group.create_task(publishers.publish(machines[number], number))
            group.create_task(publishers.collect(machines[PUBLISHERS]))
        trouble.cancel()
        with suppress(asyncio.CancelledError):
            await trouble
        print(f"seed {SEED}", dict(publishers.ends), dict(chaos.injected))  # noqa: T201  the result
        print(*publishers.troubled, sep="\n")  # noqa: T201  why some failed, which they may
        with ProxyProcess(tmp_path / "proxy", **settings, NIXCACHE_PUBLIC_KEYS=str(key.public_key)) as proxy:
            await asyncio.to_thread(proxy.wait_ready)
            await asyncio.to_thread(assert_substitutable, proxy, publishers.finished)
        (await asyncio.to_thread(machines[0].run, "verify")).check()
    report(publishers.ends, chaos.injected.items(), len(publishers.finished))
    assert publishers.finished


def settings_of(far_side: FarSide, folder: Path) -> dict[str, str]:
    """What proxy and publishers are told."""
    token = folder / "token"
    token.write_text(f"octocat:{far_side.token}\n")
    return {**far_side.settings, "NIXCACHE_TOKEN_FILE": str(token)}


def report(ends: Counter[str], faults: Iterable[tuple[str, int]], paths: int) -> None:
    """Write the suite's result."""
    what = (
        f"{PUBLISHERS} publishers and a gc, each a process again and again for {SECONDS:.0f} s, while the"
        " registry fails at random and collects what no manifest names. Faults that were ordered:"
        f" {', '.join(f'{kind} {count}' for kind, count in sorted(faults))}. Seed: {SEED}."
    )
    cells = [
        Cell(
            "every path of a finished publish is served whole",
            ends["push: done"],
            f"held, for {paths} paths",
        ),
        Cell("what came of all runs", sum(ends.values()), "; ".join(f"{k} {v}" for k, v in ends.items())),
    ]
    write_suite(_SUITE, "Publishers under faults", what, len(cells), cells)

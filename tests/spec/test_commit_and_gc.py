"""The protocols of the commit and of gc, checked by spin in every order of their steps.

docs/spec/README.md tells what is modelled, and what the weakened rules show.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.programs import require_program

pytestmark = pytest.mark.needs("spin", "gcc")

_SOAK = pytest.mark.soak
_MODEL = Path(__file__).parents[2] / "docs" / "spec" / "commit-and-gc.pml"
# What a test may take, before it gives up: the largest model takes 5 GB.
_MEMORY_MB = 8000


@dataclass(frozen=True)
class Verdict:
    """What a search through all states found."""

    states: int
    violations: int


def _search(folder: Path, flags: str) -> Verdict:
    """Look at every state that the model can reach, until a rule is broken."""
    subprocess.run(
        [require_program("spin"), *flags.split(), "-a", _MODEL], cwd=folder, check=True, capture_output=True
    )
    options = ["-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={_MEMORY_MB}"]
    subprocess.run([require_program("gcc"), *options, "-o", "pan", "pan.c"], cwd=folder, check=True)
    # -E: a process may stop anywhere, as one that is killed does.
    done = subprocess.run(
        [folder / "pan", "-E", "-n", "-m100000"], cwd=folder, check=True, capture_output=True, text=True
    )
    violations = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"^ *([0-9.e+]+) states, stored", done.stdout, re.MULTILINE)
    assert violations is not None, done.stdout
    assert states is not None, done.stdout
    verdict = Verdict(int(float(states[1])), int(violations[1]))
    assert verdict.violations or "Search not completed" not in done.stdout, done.stdout
    assert "max search depth too small" not in done.stdout
    return verdict


_TWO_PUBLISHERS = "-DPUBLISHERS=2 -DGRACE=3 -DTRIES=1 -DRUNS=1 -DTICKS=4 -DAPART=2"
_TWO_COLLECTORS = "-DCOLLECTORS=2 -DTRIES=1 -DSEGMENTS=3 -DTICKS=3"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("", id="one publisher, three runs of gc"),
        pytest.param("-DREPLACES=1 -DRUNS=2", id="gc rewrites and merges"),
        pytest.param("-DMERGES=1", id="a publisher merges at its end, three runs of gc"),
        pytest.param("-DMERGES=2", id="a publisher merges before, three runs of gc", marks=_SOAK),
        pytest.param(_TWO_PUBLISHERS, id="two publishers", marks=_SOAK),
        pytest.param(f"{_TWO_PUBLISHERS} -DMERGES=1", id="two publishers that merge", marks=_SOAK),
        pytest.param("-DGRACE=4 -DLONGEST=1 -DSKEW=1 -DSEGMENTS=3", id="clocks that are off", marks=_SOAK),
        pytest.param(f"{_TWO_COLLECTORS} -DRUNS=2", id="two gcs", marks=_SOAK),
        pytest.param(f"{_TWO_COLLECTORS} -DRUNS=2 -DSLOW_GC=1", id="two gcs, and slow ones", marks=_SOAK),
    ],
)
def test_nothing_is_lost(tmp_path: Path, flags: str) -> None:
    """In every order of steps, every finished publish is served, and what is listed as good is there."""
    verdict = _search(tmp_path, flags)
    assert verdict.violations == 0
    assert verdict.states > 100_000, "the model does not do what it says"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            f"{_TWO_COLLECTORS} -DRUNS=1 -DSLOW_GC=1 -DAGE_AT_WRITE", id="a mark's age measured at gc's write"
        ),
        pytest.param(f"{_TWO_PUBLISHERS} -DNEWEST_WATERMARK", id="the newest of two watermarks", marks=_SOAK),
        pytest.param("-DGRACE=3 -DMARGIN=1", id="a margin of an hour instead of the grace"),
        pytest.param("-DNO_LIFT", id="marks that are never lifted"),
        pytest.param("-DMERGES=2 -DMERGE_CONDEMNED", id="a merger that takes in what is condemned"),
        pytest.param("-DMERGES=1 -DUNLIST_TAKEN", id="gc deletes what was taken in without the grace"),
        pytest.param("-DLONGEST=GRACE+1", id="a publish that takes longer than the grace"),
        pytest.param(
            f"{_TWO_COLLECTORS} -DRUNS=2 -DSLOW_WRITES=1",
            id="gc writes long after its last look",
            marks=_SOAK,
        ),
    ],
)
def test_each_rule_is_needed(tmp_path: Path, flags: str) -> None:
    """Weakened by one rule, or without one assumption, the protocol loses something."""
    assert _search(tmp_path, flags).violations == 1

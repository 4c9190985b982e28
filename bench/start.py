"""How long a start takes: the version, and the proxy until it listens; beside Python's own start."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.figures import Series, Target
from bench.scenario import OURS, Bench, Measurement
from tests.support.proxy import ProxyProcess

TITLE = "start of the program"

_FLOOR = "python -c pass"
_VERSION = Series("nixcache-oci --version", "ms")
_LISTENING = Series("proxy until it listens", "ms")
# A start is over so soon that a neighbour's burst of work falls on one contender alone.
_TIMES = 4


def run(bench: Bench) -> None:
    """Measure both, each beside the floor."""
    program = str(Path(sys.executable).with_name("nixcache-oci"))
    floor = [sys.executable, "-c", "pass"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench.compare(
            {
                OURS: partial(_run, _VERSION, [program, "--version"]),
                _FLOOR: partial(_run, _VERSION, floor),
            },
            rounds=bench.rounds * _TIMES,
        )
        bench.compare(
            {OURS: partial(_listen, folder), _FLOOR: partial(_run, _LISTENING, floor)},
            rounds=bench.rounds * _TIMES,
        )
    bench.expect(Target(_VERSION, OURS, 150))
    bench.expect(Target(_LISTENING, OURS, 400))


def _run(series: Series, command: list[str]) -> Measurement:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {series: (time.monotonic() - started) * 1000}


def _listen(folder: Path) -> Measurement:
    started = time.monotonic()
    with ProxyProcess(folder / "proxy", NIXCACHE_REGISTRY=f"oci:{folder}/cache"):
        return {_LISTENING: (time.monotonic() - started) * 1000}

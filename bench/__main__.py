"""Measures this project beside what a user would take instead.

python -m bench                      all scenarios
python -m bench substitution start   some of them
python -m bench --quick              few rounds of less: whether it works, not how fast it is
"""

import argparse
import importlib
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from bench.figures import Figures
from bench.report import render_report
from bench.scenario import Bench, Scenario

SCENARIOS = (
    "start",
    "narinfo",
    "large_nar",
    "memory",
    "scale",
    "prefixes",
    "publish",
    "uploads",
    "substitution",
    "upstream",
    "day",
    "verify",
    "year",
)
_RESULTS = Path(__file__).parent / "results"
_ROUNDS = 5
_QUICK_ROUNDS = 2


def main() -> None:
    """Run scenarios, write a JSON file for each, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help=f"{_ROUNDS} without it")
    parser.add_argument("--size", type=int, metavar="N", help="publishes of the scenario day")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder for the JSON files")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    rounds = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
    done = [
        _run(name, rounds, is_quick=arguments.quick, size=arguments.size)
        for name in arguments.names or SCENARIOS
    ]
    for figures in done:
        path = arguments.results / f"{figures.scenario}.json"
        path.write_text(json.dumps(figures.to_document(), indent=1) + "\n", encoding="utf-8")
        print(render_report(figures))


def _run(name: str, rounds: int, *, is_quick: bool, size: int | None) -> Figures:
    # Not all at once: a scenario may want a program that is only here for it.
    scenario = cast("Scenario", importlib.import_module(f"bench.{name}"))
    figures = Figures(name, scenario.TITLE)
    bench = Bench(figures, rounds, is_quick, size)
    bench.note("begun", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    bench.note("python", platform.python_version())
    bench.note("cores", str(os.cpu_count()))
    bench.note("load", _load())
    print(f"{name}: {scenario.TITLE}", flush=True)
    scenario.run(bench)
    bench.note("load at the end", _load())
    return figures


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


if __name__ == "__main__":
    main()

"""wrk, which asks a server for paths at random over keep-alive."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import require_program

CONNECTIONS = 16
_MILLISECONDS = {"us": 0.001, "ms": 1, "s": 1000}
_SCRIPT = """
local paths = {}
for line in io.lines(os.getenv("PATHS")) do paths[#paths + 1] = line end
math.randomseed(os.time())
request = function() return wrk.format("GET", paths[math.random(#paths)]) end
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What it got.

    Attributes:
        count: of all answers.
        per_second: of them.
        errors: those with a status of 400 or more.
        p99: milliseconds that 99 of a hundred take at most.
    """

    count: int
    per_second: float
    errors: int
    p99: float


def ask_at_random(host: str, paths: Path, seconds: int) -> Answers:
    """Ask for the paths in a file, one on each line, over 16 connections."""
    script = paths.with_name("wrk.lua")
    script.write_text(_SCRIPT)
    command = [
        require_program("wrk"),
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
    ]
    run = subprocess.run(
        [*command, f"http://{host}"],
        env={**os.environ, "PATHS": str(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    count = re.search(r"([0-9]+) requests in", run.stdout)
    rate = re.search(r"Requests/sec: +([0-9.]+)", run.stdout)
    errors = re.search(r"Non-2xx or 3xx responses: ([0-9]+)", run.stdout)
    p99 = re.search(r"99% +([0-9.]+)(us|ms|s)\b", run.stdout)
    if count is None or rate is None or p99 is None:
        raise RuntimeError(f"wrk: {run.stdout}")
    return Answers(
        int(count[1]),
        float(rate[1]),
        int(errors[1]) if errors is not None else 0,
        float(p99[1]) * _MILLISECONDS[p99[2]],
    )

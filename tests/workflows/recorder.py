"""What a job finds on PATH: a program that writes down how it was called, and nothing that is not wanted."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.programs import require_program
from tests.workflows.runner import Job

_PROGRAM: Final = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=log)
"""


@dataclass(frozen=True, slots=True)
class Call:
    """How the program was called once."""

    arguments: list[str]
    environment: dict[str, str]


class Recorder:
    """Stands on a job's PATH as nixcache-oci from now on."""

    def __init__(self, job: Job) -> None:
        self._log = job.temp / "calls"
        program = job.temp / "bin/nixcache-oci"
        program.parent.mkdir()
        program.write_text(_PROGRAM.format(python=sys.executable, log=str(self._log)))
        program.chmod(0o755)
        job.environment["PATH"] = os.pathsep.join([str(program.parent), job.environment["PATH"]])

    def calls(self) -> list[Call]:
        """Tell the calls, the first one first."""
        return [Call(*json.loads(line)) for line in self._log.read_text().splitlines()]


def spy_on(job: Job, name: str = "nix") -> Path:
    """Put a program in front of a real one: it writes down what it, and all above it, were started with."""
    seen = job.temp / f"seen-{name}"
    spy = job.temp / "spy" / name
    spy.parent.mkdir(exist_ok=True)
    spy.write_text(
        f"#!/bin/sh\nreal_path=$PATH\nPATH=/usr/bin:/bin\np=$$\n{{ echo; echo call $*; }} >>{seen}\n"
        f'while [ "$p" != {os.getpid()} ]; do\n'
        f"  {{ echo; echo process; tr '\\0' '\\n' </proc/$p/environ; }} >>{seen}\n"
        "  p=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$p/status)\ndone\n"
        f'PATH=$real_path exec {require_program(name)} "$@"\n'
    )
    spy.chmod(0o755)
    job.environment["PATH"] = os.pathsep.join([str(spy.parent), job.environment["PATH"]])
    return seen


def restrict_path(job: Job, *programs: str) -> None:
    """Leave only these programs on a job's PATH."""
    folder = job.temp / "programs"
    folder.mkdir()
    for name in programs:
        (folder / name).symlink_to(require_program(name))
    job.environment["PATH"] = str(folder)

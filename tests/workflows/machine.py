"""A machine of GitHub's, played by nektos/act: it runs workflows as they are written, with real shell steps.

Other people's actions are stubs. act knows nothing of a job's permissions. It has steps write to a terminal,
and may lose the end of what a failing one says; so the bash that it finds is a wrapper that writes to a file.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nixcache_oci.cli.starter import PLACEHOLDER_REF
from tests.support.programs import require_program
from tests.workflows.documents import HERE, Document

# What a step itself starts by this name is left alone.
_BASH: Final = """#!/bin/sh
case $* in *{folder}/act/*/act/workflow/*.sh) ;; *) exec {bash} "$@" ;; esac
[ -z "$GITHUB_ACTION_PATH" ] || /bin/cat /proc/$$/environ >'{folder}/given'
export GITHUB_STEP_SUMMARY='{folder}/summary'
exec {bash} "$@" </dev/null >>'{folder}/log' 2>&1
"""
_RECORDER: Final = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=log)
"""
# Writes down what a program, and all above it up to the runner, were started with.
_SPY: Final = """#!/bin/sh
real_path=$PATH PATH=/usr/bin:/bin p=$$
{{ echo; echo call $*; }} >>{seen}
while read -r name </proc/$p/comm; [ "$name" != act ]; do
  {{ echo; echo process; tr '\\0' '\\n' </proc/$p/environ; }} >>{seen}
  p=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$p/status)
done
PATH=$real_path exec {program} "$@"
"""


@dataclass(frozen=True, slots=True)
class Event:
    """Why a workflow runs.

    Attributes:
        name: such as ``push``.
        ref: in full; of a branch, a tag or a pull request.
        payload: what the webhook sent.
        sha: the commit that every job of it sees, whatever is pushed meanwhile; empty for the newest.
    """

    name: str = "push"
    ref: str = "refs/heads/main"
    payload: Mapping[str, Any] = field(default_factory=dict)
    sha: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes:
        is_success: whether every step, and with it every job, succeeded.
        log: what its shell steps said, without secrets masked.
        summary: Markdown that they left.
        outputs: of the step with the id ``action``, if there is one.
        given: the environment that the last step of an action was started with.
        said: what the runner itself said.
    """

    is_success: bool
    log: str
    summary: str
    outputs: Mapping[str, str]
    given: Mapping[str, str]
    said: str

    def check(self) -> "Result":
        """Make sure that it succeeded.

        Raises:
            RuntimeError: it did not; with what was said.
        """
        if not self.is_success:
            raise RuntimeError(f"{self.log[-4000:]}\n{self.said[-4000:]}")
        return self

    def check_failure(self, text: str) -> "Result":
        """Make sure that it failed, and said this."""
        assert not self.is_success
        assert text in self.log
        return self


@dataclass(eq=False)
class Machine:
    """One machine with one checkout.

    Attributes:
        folder: for all of it.
        environment: of its steps.
        event: why they run.
        secrets: by name; that named GITHUB_TOKEN is the job's token as well.
        actions: the folder that each repository of actions lies in, by ``owner/name@ref``.
    """

    folder: Path
    environment: dict[str, str]
    event: Event
    secrets: Mapping[str, str]
    actions: Mapping[str, Path]

    def __post_init__(self) -> None:
        self.workspace.mkdir(parents=True)
        self.put("bash", _BASH.format(folder=self.folder, bash=require_program("bash")))

    @property
    def workspace(self) -> Path:
        """The checkout of a run of steps; a workflow has one of its own for each of its jobs."""
        return self.folder / "workspace"

    # What is on PATH

    def put(self, name: str, script: str) -> None:
        """Put a program in front of PATH."""
        program = self.folder / f"program-{name}" / name
        program.parent.mkdir()
        program.write_text(script)
        program.chmod(0o755)
        self.environment["PATH"] = os.pathsep.join([str(program.parent), self.environment["PATH"]])

    def record(self) -> None:
        """Put a program in the place of nixcache-oci that writes down its calls."""
        self.put("nixcache-oci", _RECORDER.format(python=sys.executable, log=str(self.folder / "calls")))

    def call(self) -> tuple[list[str], dict[str, str]]:
        """Tell the arguments and the environment of the one call that was recorded."""
        (line,) = (self.folder / "calls").read_text().splitlines()
        arguments, environment = json.loads(line)
        return arguments, environment

    def spy_on(self, name: str) -> Path:
        """Write down what a program, and all above it, are started with from now on; gives the file."""
        seen = self.folder / f"seen-{name}"
        self.put(name, _SPY.format(seen=seen, program=require_program(name)))
        return seen

    def restrict_path(self, *programs: str) -> None:
        """Leave only bash and these programs on PATH."""
        folder = self.folder / "programs"
        folder.mkdir()
        for name in programs:
            (folder / name).symlink_to(require_program(name))
        self.environment["PATH"] = os.pathsep.join([str(self.folder / "program-bash"), str(folder)])

    # What runs

    def run_action(self, name: str, **given: str) -> Result:
        """Run an action of this project in the workspace; hyphens of inputs are written as underscores."""
        inputs = {name.replace("_", "-"): value for name, value in given.items()}
        return self.run_steps({"id": "action", **use(name, inputs)})

    def run_steps(self, *steps: Document) -> Result:
        """Run steps in the workspace, whatever is in it, and nothing of it unless they say so."""
        link = f'/bin/rmdir "$GITHUB_WORKSPACE"; /bin/ln -s {self.workspace} "$GITHUB_WORKSPACE"'
        begin = {"run": link, "working-directory": "/", "env": {"BASH_ENV": ""}}
        told = {"BASH_ENV": "", "OUTPUTS": "${{ toJSON(steps.action.outputs) }}"}
        end = {"if": "always()", "run": f'printf %s "$OUTPUTS" >{self.folder}/outputs', "env": told}
        job = {"runs-on": "ubuntu-24.04", "steps": [begin, *steps, end]}
        workflow = self.folder / "workflow.yml"
        workflow.write_text(json.dumps({"on": [self.event.name], "jobs": {"job": job}}))
        return self.run(workflow)

    def run(self, workflow: Path) -> Result:
        """Run a workflow; of a matrix, the part for machines of this kind."""
        files = {name: self.folder / name for name in ("log", "summary", "outputs", "given")}
        for file in files.values():
            file.write_text("")
        payload = self.folder / "event.json"
        payload.write_text(json.dumps(self.event.payload))
        told = {"GITHUB_REF": self.event.ref, "SHA_REF": self.event.sha or "0" * 40}
        many = {
            "--env": [f"{name}={value}" for name, value in (self.environment | told).items()],
            "--secret": [f"{name}={value}" for name, value in self.secrets.items()],
            "--local-repository": [f"{name}={folder}" for name, folder in self.actions.items()],
        }
        ran = subprocess.run(
            [
                *(require_program("act"), self.event.name, "--workflows", workflow, "--eventpath", payload),
                *("--platform", "ubuntu-24.04=-self-hosted", "--matrix", "os:ubuntu-24.04"),
                *("--action-cache-path", self.folder / "act"),
                *("--no-skip-checkout", "--no-cache-server", "--action-offline-mode", "--rm"),
                *(word for option, values in many.items() for value in values for word in (option, value)),
            ],
            cwd=self.folder,
            env={"HOME": str(self.folder / "home"), "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        log, summary, outputs, given = (file.read_bytes().decode() for file in files.values())
        environment = dict(line.split("=", 1) for line in given.split("\0") if line)
        said = ran.stderr + ran.stdout
        return Result(ran.returncode == 0, log, summary, json.loads(outputs or "{}"), environment, said)


def use(name: str, given: Mapping[str, str]) -> Document:
    """Write a step that uses one of this project's actions."""
    return {"uses": f"{HERE}workflows/{name}@{PLACEHOLDER_REF}", "with": given}

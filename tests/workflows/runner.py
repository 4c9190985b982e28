"""Runs composite actions, and the steps of jobs, as GitHub's runner does it.

Real: the shell steps, the files that they write to, and what expressions say. Not real: other people's
actions, each of which is played by a function.

Source: GitHub's documentation, "Workflow syntax", "Metadata syntax" and "Workflow commands".
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from nixcache_oci.cli.starter import PLACEHOLDER_REF
from tests.workflows.documents import HERE, TOP, Document, read
from tests.workflows.expression import Payload, Scope, Value, render

_MOST_SECONDS: Final = 300
_ACTION_STEP_KEYS: Final = {"name", "id", "if", "shell", "run", "env", "uses", "with"}
_COMMAND: Final = re.compile(r"::(?P<name>[^\s:]+)(?: [^:]*)?::(?P<value>.*)")
_OLD_COMMAND: Final = re.compile(r"##\[(?P<name>[^\s\]]+)(?: [^\]]*)?\](?P<value>.*)")
# As GitHub's documentation writes the command of `shell: bash`.
_BASH: Final = ("bash", "--noprofile", "--norc", "-eo", "pipefail")


class RunnerError(Exception):
    """A file that GitHub would refuse, or that this runner does not take."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a job or an action ended.

    Attributes:
        outcome: ``success``, ``failure`` or ``skipped``.
        outputs: by name.
        log: what its steps said.
        summary: Markdown that its steps left.
        workspace: where its checkout was.
    """

    outcome: str
    outputs: Mapping[str, str]
    log: str
    summary: str
    workspace: Path

    def check(self) -> "Result":
        """Make sure that it succeeded.

        Raises:
            RuntimeError: it did not; with what it said.
        """
        if self.outcome != "success":
            raise RuntimeError(f"{self.outcome}: {self.log[-4000:]}")
        return self


@dataclass(frozen=True, slots=True)
class Event:
    """Why a workflow runs.

    Attributes:
        name: such as ``push``.
        ref: in full; of a branch, a tag or a pull request.
        payload: what the webhook sent.
        sha: the commit that every job of it sees, whatever is pushed meanwhile; None for the newest.
    """

    name: str = "push"
    ref: str = "refs/heads/main"
    payload: Payload = field(default_factory=Payload)
    sha: str | None = None

    @property
    def ref_name(self) -> str:
        return self.ref.split("/", 2)[2]


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a job may do, and the token by which it may.

    Attributes:
        permissions: as the job has them: least unless it says otherwise.
        token: at the registry.
    """

    permissions: Mapping[str, str]
    token: str


@dataclass(eq=False)
class Job:
    """One machine with one checkout, while a job runs on it.

    Attributes:
        folder: for all of it.
        environment: of the whole machine.
        event: why it runs.
        permitted: what it may do.
        players: plays other people's actions, by ``owner/name``; each gets the job and the inputs.
        run_id: names the run.
        log: what its steps said.
        summary: Markdown that its steps left.
    """

    folder: Path
    environment: dict[str, str]
    event: Event
    permitted: Permitted
    players: "Mapping[str, Player]"
    run_id: str
    log: str = ""
    summary: str = ""

    def __post_init__(self) -> None:
        self.workspace.mkdir(parents=True)
        self.temp.mkdir()

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def temp(self) -> Path:
        return self.folder / "temp"

    def github(self) -> dict[str, Value]:
        """What ``github`` names; a step that uses more has to be given more."""
        return {
            "token": self.permitted.token,
            "repository": self.environment["GITHUB_REPOSITORY"],
            "event_name": self.event.name,
            "ref": self.event.ref,
            "ref_type": {"heads": "branch", "tags": "tag"}.get(self.event.ref.split("/")[1], ""),
            "event": self.event.payload,
        }

    def run_action(self, folder: Path, given: Mapping[str, str]) -> Result:
        """Run a composite action.

        Args:
            folder: where its action.yml lies.
            given: its inputs.

        Raises:
            RunnerError: an input that it does not have, or lacks.
        """
        document = read(folder / "action.yml")
        steps = Steps(self, {"inputs": self._inputs(document, given)}, _ACTION_STEP_KEYS, folder)
        steps.run(document["runs"]["steps"])
        outputs = {name: each["value"] for name, each in document.get("outputs", {}).items()}
        return steps.result(outputs)

    def run_shell(
        self, script: str, environment: Mapping[str, str], action: Path | None
    ) -> tuple[str, Mapping[str, str]]:
        """Run one step's script; tells its outcome and outputs."""
        files = {name: self.temp / f"GITHUB_{name}" for name in ("OUTPUT", "ENV", "PATH", "STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        path = self.temp / "step.sh"
        path.write_text(script)
        ran = subprocess.run(
            [*_BASH, str(path)],
            cwd=self.workspace,
            env={
                **self.environment,
                **self._own_environment(),
                **{file.name: str(file) for file in files.values()},
                **({"GITHUB_ACTION_PATH": str(action)} if action else {}),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_MOST_SECONDS,
            check=False,
        )
        self.log += ran.stdout
        self.summary += files["STEP_SUMMARY"].read_text()
        self.environment |= parse_commands(files["ENV"].read_text())
        added = files["PATH"].read_text().splitlines()
        self.environment["PATH"] = os.pathsep.join([*reversed(added), self.environment["PATH"]])
        return "failure" if ran.returncode else "success", parse_commands(files["OUTPUT"].read_text())

    def use(self, uses: str, given: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
        """Run the action that a step names; tells its outcome and outputs.

        Raises:
            RunnerError: it is somebody else's, and nobody plays it.
        """
        name, _, ref = uses.partition("@")
        if player := self.players.get(name):
            return "success", player(self, given)
        if name.startswith("./") and not ref:
            result = self.run_action(self.workspace / name, given)
        elif name.startswith(HERE) and ref == PLACEHOLDER_REF:
            result = self.run_action(TOP / name.removeprefix(HERE), given)
        else:
            raise RunnerError(f"nobody plays {uses}")
        return result.outcome, result.outputs

    def _inputs(self, document: Document, given: Mapping[str, str]) -> dict[str, Value]:
        declared = document.get("inputs", {})
        if unknown := given.keys() - declared.keys():
            raise RunnerError(f"{document['name']}: has no input {', '.join(sorted(unknown))}")
        scope = Scope({"github": self.github()})
        inputs: dict[str, Value] = {}
        for name, one in declared.items():
            if one.get("required") and not given.get(name):
                raise RunnerError(f"{document['name']}: input {name} is missing")
            inputs[name] = given[name] if name in given else scope.render(one.get("default", ""))
        return inputs

    def _own_environment(self) -> dict[str, str]:
        return {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_NAME": self.event.name,
            "GITHUB_REF": self.event.ref,
            "GITHUB_REF_NAME": self.event.ref_name,
            "GITHUB_RUN_ID": self.run_id,
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
            # For the remote's hook, which has no other way to know.
            "RUNNER_CONTENTS": self.permitted.permissions.get("contents", "none"),
        }


class Steps:
    """One list of steps: a job's, or an action's.

    Args:
        job: the machine.
        contexts: what expressions may name, beside ``github`` and ``steps``.
        keys: that a step may have.
        action: the folder of the action whose steps they are.
    """

    def __init__(
        self, job: Job, contexts: Mapping[str, Value], keys: set[str], action: Path | None = None
    ) -> None:
        self._job = job
        self._results: dict[str, Value] = {}
        self._contexts = {**contexts, "github": job.github(), "steps": self._results}
        self._keys = keys
        self._action = action
        self._status = "success"

    def run(self, steps: Sequence[Document]) -> None:
        """Run one after another; each whose ``if`` says no is skipped, as is what follows a failure.

        Raises:
            RunnerError: a key that is not known here, or a step that runs and uses at once.
        """
        for step in steps:
            if not step.keys() <= self._keys or ("run" in step) == ("uses" in step):
                raise RunnerError(f"a step with {sorted(step)} is not known here")
            outcome, outputs = "skipped", dict[str, str]()
            if Scope(self._contexts, self._status).decide(step.get("if")):
                outcome, outputs = self._run(step)
            if outcome == "failure":
                self._status = "failure"
            if "id" in step:
                self._results[step["id"]] = {"outcome": outcome, "outputs": Payload(outputs)}

    def result(self, outputs: Mapping[str, str]) -> Result:
        """Tell how it ended; outputs count after a failure, too."""
        scope = Scope(self._contexts)
        rendered = {name: scope.render(value) for name, value in outputs.items()}
        return Result(self._status, rendered, self._job.log, self._job.summary, self._job.workspace)

    def _run(self, step: Document) -> tuple[str, dict[str, str]]:
        scope = Scope(self._contexts, self._status)
        given = {
            name: scope.render(_text(value)) for name, value in step.get("with", step.get("env", {})).items()
        }
        if "run" in step:
            outcome, outputs = self._job.run_shell(scope.render(step["run"]), given, self._action)
        else:
            outcome, outputs = self._job.use(step["uses"], given)
        return outcome, dict(outputs)


Player: TypeAlias = Callable[[Job, Mapping[str, str]], Mapping[str, str]]


def parse_commands(text: str) -> dict[str, str]:
    """Read what a step wrote to GITHUB_OUTPUT or GITHUB_ENV, in its form of one line.

    Raises:
        RunnerError: a line that is none.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not (name and equals) or "<<" in name:
            raise RunnerError(f"expected name=value, got {line!r}")
        found[name] = value
    return found


def find_commands(log: str) -> list[tuple[str, str]]:
    """Find the commands that a runner would obey in a step's log: name and value of each.

    A carriage return ends a line, too; one form begins its line, the other may stand anywhere. Nothing counts
    between ``stop-commands`` and the word that it was given, in either form and whatever its case.
    """
    found: list[tuple[str, str]] = []
    word: str | None = None
    for line in re.split(r"\r\n|\r|\n", log):
        match = _COMMAND.match(line.lstrip()) or _OLD_COMMAND.search(line)
        if match is None:
            continue
        name, value = match["name"], match["value"]
        if word is not None:
            word = None if name.casefold() == word.casefold() else word
        elif name == "stop-commands":
            word = value
        else:
            found.append((name, value))
    return found


def _text(value: Any) -> str:  # noqa: ANN401 -- a scalar of YAML
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
    return render(value)

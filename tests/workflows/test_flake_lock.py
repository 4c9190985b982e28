"""The workflow that proposes a newer flake.lock: what it takes from a job that read other people's flakes."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.documents import TOP
from tests.workflows.github_story import GithubStory
from tests.workflows.runner import Job, Result

WORKFLOW = TOP / ".github/workflows/update-flake-lock.yml"
PROPOSED = "refs/heads/update-flake-lock"

pytestmark = pytest.mark.needs("nix", "git", "jq")

# Nobody here is GitHub: it says how many pull requests are open, and writes down how it is called.
GH = """#!/bin/sh
echo "$@" >>'{log}'
case $1-$2 in pr-list) echo {open} ;; esac
"""


@dataclass
class Inputs:
    """A repository with a flake that has one input.

    Attributes:
        story: the repository.
        folder: of the input, a git repository.
    """

    story: GithubStory
    folder: Path

    def publish(self, text: str) -> None:
        """Commit another state of the input."""
        (self.folder / "flake.nix").write_text(f'{{ outputs = {{ self }}: {{ text = "{text}"; }}; }}')
        self.story.git("add", "flake.nix", folder=self.folder)
        self.story.git("commit", "--quiet", "--message", text, folder=self.folder)

    def gh(self, *, is_open: bool = False) -> Path:
        """Put gh on every job's PATH; gives the file of its calls."""
        log = self.story.folder / "gh-calls"
        log.write_text("")
        program = self.story.folder / "gh/gh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(GH.format(log=log, open=int(is_open)))
        program.chmod(0o755)
        path = self.story._environment["PATH"]
        self.story._environment["PATH"] = os.pathsep.join([str(program.parent), path])
        return log

    def run(self, name: str, **needs: Result) -> Result:
        return self.story.run(WORKFLOW, name, needs=needs)


@pytest.fixture
def inputs(story: GithubStory) -> Inputs:
    folder = story.folder / "input"
    story.git("init", "--quiet", str(folder))
    found = Inputs(story, folder)
    found.publish("old")
    text = (
        f'{{ inputs.dep.url = "git+file://{folder}"; outputs = {{ self, dep }}: {{ inherit (dep) text; }}; }}'
    )
    script = TOP / "scripts/propose-flake-lock"
    story.commit({"flake.nix": text, "scripts/propose-flake-lock": script.read_text()})
    story.nix.sandbox.run("nix", "flake", "lock", f"git+file://{story.clone}").check()
    story.commit({})
    story.players["./workflows/setup"] = setup
    return found


def setup(job: Job, _given: object) -> dict[str, str]:
    """Nix is there already."""
    del job
    return {}


def test_it_is_proposed(inputs: Inputs) -> None:
    """The new state becomes a branch with one commit of one file, and a pull request, once."""
    before = inputs.story.head()
    inputs.publish("new")
    calls = inputs.gh()
    updated = inputs.run("update").check()
    inputs.run("propose", update=updated).check()
    assert inputs.story.head() == before
    assert inputs.story.changed_files(PROPOSED) == {"flake.lock": "M"}
    assert "github-actions[bot]" in inputs.story.author(PROPOSED)
    lock = inputs.story.show("flake.lock", PROPOSED)
    assert json.loads(lock) == json.loads(updated.outputs["lock"])
    assert "pr create --head update-flake-lock --base main" in calls.read_text()
    calls = inputs.gh(is_open=True)
    inputs.run("propose", update=updated).check()
    assert "create" not in calls.read_text()


def test_nothing_new(inputs: Inputs) -> None:
    """Then there is no commit, no branch and no pull request."""
    calls = inputs.gh()
    updated = inputs.run("update").check()
    ran = inputs.run("propose", update=updated).check()
    assert "nothing new" in ran.log
    assert calls.read_text() == ""
    assert "update-flake-lock" not in inputs.story.git("branch", "--list", folder=inputs.story.remote)


def _change(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda lock: lock["nodes"]["dep"]["locked"].update(fields)


def _add_input(lock: dict[str, Any]) -> None:
    lock["nodes"]["more"] = lock["nodes"]["dep"]
    lock["nodes"]["root"]["inputs"]["more"] = "more"


@pytest.mark.parametrize(
    "change",
    [
        _change(url="https://evil.example/dep"),
        _change(type="tarball"),
        _change(rev="0"),
        _change(narHash="sha256-"),
        _change(lastModified=1),
        _change(lastModified="2"),
        lambda lock: lock["nodes"]["dep"]["original"].update(url="https://evil.example/dep"),
        lambda lock: lock.update(version=8),
        _add_input,
    ],
)
def test_no_more_than_a_newer_state_is_taken(
    inputs: Inputs, change: Callable[[dict[str, Any]], None]
) -> None:
    """What came of a job that read other people's flakes cannot name another repository, nor go back."""
    calls = inputs.gh()
    lock = json.loads(inputs.story.show("flake.lock"))
    change(lock)
    handed = Result("success", {"lock": json.dumps(lock)}, "", "", inputs.folder)
    ran = inputs.run("propose", update=handed)
    assert ran.outcome == "failure"
    assert "::error::the new flake.lock changes more" in ran.log
    assert calls.read_text() == ""


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"nodes": 1}'])
def test_what_is_no_lock(inputs: Inputs, text: str) -> None:
    """It is refused like one that says too much."""
    handed = Result("success", {"lock": text}, "", "", inputs.folder)
    assert inputs.run("propose", update=handed).outcome == "failure"

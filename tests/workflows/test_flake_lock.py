"""The workflow that proposes a newer flake.lock: what it takes from a job that read other people's flakes."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.documents import TOP
from tests.workflows.github_story import GithubStory
from tests.workflows.machine import Event, Result

SCRIPT = TOP / "scripts/propose-flake-lock"
STATE: dict[str, object] = {"lastModified": 2, "narHash": f"sha256-{'A' * 43}=", "rev": "0" * 40}
WHERE = {"type": "git", "url": "https://good.example/dep"}
PROPOSED = "refs/heads/update-flake-lock"
# Nobody here is GitHub: it says how many pull requests are open, and writes down how it is called.
GH = '#!/bin/sh\necho "$@" >>{log}\ncase $1-$2 in pr-list) echo {open} ;; esac\n'


@pytest.mark.needs("nix", "git", "jq", "act")
def test_it_is_proposed(story: GithubStory) -> None:
    """A new state becomes a branch with one commit of one file, and a pull request, once.

    Where nothing is new, there is none of them.
    """
    dep, calls = story.folder / "input", story.folder / "gh-calls"
    story.git("init", "--quiet", str(dep))

    def publish(text: str) -> str:
        (dep / "flake.nix").write_text(f'{{ outputs = {{ self }}: {{ text = "{text}"; }}; }}')
        story.git("add", "flake.nix", folder=dep)
        story.git("commit", "--quiet", "--message", text, folder=dep)
        return story.head("HEAD", folder=dep)

    def run(*, is_open: bool = False) -> tuple[Result, str]:
        calls.write_text("")
        story.programs["gh"] = GH.format(log=calls, open=int(is_open))
        workflow = TOP / ".github/workflows/update-flake-lock.yml"
        return story.run(workflow, Event("schedule")).check(), calls.read_text()

    publish("old")
    flake = (
        f'{{ inputs.dep.url = "git+file://{dep}"; outputs = {{ self, dep }}: {{ inherit (dep) text; }}; }}'
    )
    setup = (story.own_actions / "workflows/setup/action.yml").read_text()
    files = {"flake.nix": flake, "workflows/setup/action.yml": setup}
    story.commit(files | {"scripts/propose-flake-lock": SCRIPT.read_text()})
    story.nix.sandbox.run("nix", "flake", "lock", f"git+file://{story.clone}").check()
    before = story.commit({})

    unchanged, called = run()
    assert "nothing new" in unchanged.log
    assert called == ""
    assert "update-flake-lock" not in story.git("branch", "--list", folder=story.remote)

    newest = publish("new")
    _, called = run()
    assert story.head() == before
    assert story.changed_files(PROPOSED) == {"flake.lock": "M"}
    assert "github-actions[bot]" in story.describe(PROPOSED)
    assert json.loads(story.show("flake.lock", PROPOSED))["nodes"]["dep"]["locked"]["rev"] == newest
    assert "pr create --head update-flake-lock --base main" in called
    assert "create" not in run(is_open=True)[1]


def lock_of(change: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
    """Give a lock of one input, and have it changed."""
    nodes = {"dep": {"locked": {**STATE, **WHERE}, "original": {**WHERE}}, "root": {"inputs": {"dep": "dep"}}}
    lock = {"nodes": nodes, "root": "root", "version": 7}
    if change is not None:
        change(lock)
    return lock


def propose(folder: Path, lock: str) -> str:
    """Run the script on a lock that is handed to it, where no branch could be pushed; gives what it said."""
    (folder / "flake.lock").write_text(json.dumps(lock_of()))
    environment = {"PATH": os.environ["PATH"], "LOCK": lock}
    ran = subprocess.run(
        ["bash", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    return ran.stdout


def _locked(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda lock: lock["nodes"]["dep"]["locked"].update(fields)


def _add_input(lock: dict[str, Any]) -> None:
    lock["nodes"]["more"] = lock["nodes"]["dep"]
    lock["nodes"]["root"]["inputs"]["more"] = "more"


@pytest.mark.needs("jq", "git")
@pytest.mark.parametrize(
    ("change", "is_taken"),
    [
        (_locked(lastModified=3, rev="1" * 40), True),
        (_locked(url="https://evil.example/dep"), False),
        (_locked(type="tarball"), False),
        (_locked(rev="0"), False),
        (_locked(narHash="sha256-"), False),
        (_locked(lastModified=1), False),
        (_locked(lastModified="3"), False),
        (lambda lock: lock["nodes"]["dep"]["original"].update(url="https://evil.example/dep"), False),
        (lambda lock: lock.update(version=8), False),
        (_add_input, False),
    ],
)
def test_no_more_than_a_newer_state_is_taken(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], is_taken: bool
) -> None:
    """What came of a job that read other people's flakes cannot name another repository, nor go back."""
    said = propose(tmp_path, json.dumps(lock_of(change)))
    assert ("::error::the new flake.lock changes more" not in said) is is_taken
    assert (json.loads((tmp_path / "flake.lock").read_text()) != lock_of()) is is_taken


@pytest.mark.needs("jq", "git")
@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"nodes": 1}'])
def test_what_is_no_lock(tmp_path: Path, text: str) -> None:
    """It is refused like one that says too much."""
    propose(tmp_path, text)
    assert json.loads((tmp_path / "flake.lock").read_text()) == lock_of()

"""The action that caches whatever a job builds: one step, and what it does when the job is over."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support.github_commands import find_commands
from tests.support.programs import require_program
from tests.support.registries import REPO
from tests.workflows.documents import TOP, Document
from tests.workflows.github_story import GithubStory
from tests.workflows.machine import Machine, use
from tests.workflows.test_origin import CASES, JOB_SECRETS

ACTION = TOP / "workflows/cache"
KEY = "a-1:" + "A" * 43 + "="
TOKEN = "ghs_token"
needs_act = pytest.mark.needs("nix", "git", "act", "node")

# Where the action's own script would install it.
INSTALL = """#!/usr/bin/env bash
mkdir -p "$RUNNER_TEMP/nixcache-oci/bin"
ln -s {program} "$RUNNER_TEMP/nixcache-oci/bin/nixcache-oci"
echo "$RUNNER_TEMP/nixcache-oci/bin" >>"$GITHUB_PATH"
"""
# Writes down what it was started with, and serves nothing until it is stopped.
STUB = """#!{python}
import json, os, signal, sys
with open({calls!r}, "a") as calls:
    print(json.dumps([os.getpid(), sys.argv[1:], dict(os.environ)]), file=calls)
if sys.argv[1] == "proxy":
    if os.environ["NIXCACHE_REPO"] == "no/cache":
        sys.exit("nixcache-oci: error: no such cache")
    print(f"listening on http://127.0.0.1:{{os.getpid()}}", flush=True)
    signal.pause()
"""


# By node itself, with a stub for the program


@dataclass(frozen=True, slots=True)
class Call:
    """One start of the program."""

    pid: int
    arguments: list[str]
    environment: dict[str, str]

    @property
    def is_running(self) -> bool:
        return psutil.pid_exists(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE


@dataclass(eq=False)
class Job:
    """A job of GitHub's as the action sees it: files, and variables.

    Attributes:
        folder: for all of it.
        environment: of its steps, beside what GitHub always sets.
        event: what the webhook sent.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    event: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkout.mkdir(parents=True)
        self.program.parent.mkdir(parents=True)
        self.program.write_text(STUB.format(python=sys.executable, calls=str(self.folder / "calls")))
        self.program.chmod(0o755)

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    @property
    def program(self) -> Path:
        return self.folder / "temp/nixcache-oci/bin/nixcache-oci"

    def main(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        return self._run("main.js", inputs)

    def post(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        """Run the last step, with the state that main left."""
        return self._run("post.js", inputs)

    def calls(self, verb: str = "") -> list[Call]:
        """Give the program's starts, of one verb or of all."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [Call(*json.loads(line)) for line in lines]
        return [call for call in calls if not verb or call.arguments[0] == verb]

    def file(self, name: str) -> dict[str, str]:
        """Read a file that GitHub reads: variables, or the state."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        long = dict(re.findall(r"^(\w+)<<(?:\w+)\n(.*?)\n\w{32}$", text, re.MULTILINE | re.DOTALL))
        return {**dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)), **long}

    def _run(self, name: str, inputs: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        event = self.folder / "event.json"
        event.write_text(json.dumps(self.event))
        defaults = {
            "repo": REPO,
            "token": TOKEN,
            "registry": "",
            "image": "",
            "public_keys": "",
            "extra_caches": "",
        }
        given = {**defaults, **inputs}
        return subprocess.run(
            [require_program("node"), str(ACTION / name)],
            cwd=self.checkout,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "GITHUB_ACTIONS": "true",
                "GITHUB_EVENT_NAME": "push",
                "GITHUB_REPOSITORY": REPO,
                "GITHUB_EVENT_PATH": str(event),
                "RUNNER_TEMP": str(self.folder / "temp"),
                **{f"GITHUB_{one}": str(self.folder / one) for one in ("ENV", "STATE", "PATH", "OUTPUT")},
                **{f"INPUT_{name.upper().replace('_', '-')}": value for name, value in given.items()},
                **{f"STATE_{name}": value for name, value in self.file("STATE").items()},
                **self.environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Give a job; what it left running is stopped, whatever the test says of that."""
    job = Job(tmp_path / "job")
    yield job
    for call in job.calls():
        if call.is_running:
            os.kill(call.pid, signal.SIGKILL)


@pytest.mark.needs("node", "nix")
def test_nix_is_pointed_at_what_listens(job: Job) -> None:
    """At this repository's cache and at the extra ones, beside what the job has set; and all of it ends."""
    job.environment |= {
        "NIX_CONFIG": "cores = 1",
        "NIXCACHE_UPSTREAM": "https://elsewhere",
        "NIXCACHE_PORT": "1",
    }
    (job.checkout / "public-key.txt").write_text(f"{KEY}\npost-build-hook = /evil\n")
    ran = job.main(extra_caches=f"\nother/cache {KEY} b{KEY}\n")
    assert ran.returncode == 0, ran.stderr
    own, other = job.calls("proxy")
    assert own.environment["NIXCACHE_REPO"] == REPO
    assert other.environment["NIXCACHE_REPO"] == "other/cache"
    assert other.environment["NIXCACHE_PUBLIC_KEYS"] == f"{KEY} b{KEY}"
    for call in (own, other):
        assert call.environment["GITHUB_TOKEN"] == TOKEN
        assert call.environment["NIXCACHE_UPSTREAM"] == ""
        assert call.environment["NIXCACHE_PORT"] == "0"
        assert call.is_running
    lines = job.file("ENV")["NIX_CONFIG"].splitlines()
    assert lines[:2] == [
        "cores = 1",
        f"extra-substituters = http://127.0.0.1:{own.pid} http://127.0.0.1:{other.pid}",
    ]
    assert lines[2].startswith(f"extra-trusted-public-keys = {KEY} post-build-hook = /evil {KEY}")
    assert len(lines) == 3
    assert job.post().returncode == 0
    assert [call for call in job.calls() if call.is_running] == []


@pytest.mark.needs("node", "nix")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.key is None])
def test_a_strangers_job_reads_without_a_secret(job: Job, name: str) -> None:
    """Neither the token, nor what else in the job could be a secret, reaches what runs beside its builds."""
    case = CASES[name]
    job.event = case.event.payload
    job.environment |= {
        **JOB_SECRETS,
        "GITHUB_EVENT_NAME": case.event.name,
        "NIXCACHE_TOKEN_FILE": "/some/file",
        "NIXCACHE_SIGNING_KEY_FILE": "/some/key",
    }
    job.main(public_keys=KEY).check_returncode()
    (call,) = job.calls()
    is_foreign = not case.publishes and case.head != REPO
    assert ("GITHUB_TOKEN" in call.environment) is not is_foreign
    assert "NIXCACHE_SIGNING_KEY_FILE" not in call.environment
    if is_foreign:
        secrets = (TOKEN, "/some/file", *JOB_SECRETS.values())
        assert [secret for secret in secrets if secret in str(call.environment)] == []


@pytest.mark.needs("node", "nix")
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"extra_caches": "other/cache"}, "input extra-caches: expected a public key after 'other/cache'"),
        (
            {"repo": "no/cache", "public_keys": KEY},
            "the proxy for no/cache does not start: nixcache-oci: error: no",
        ),
    ],
)
def test_what_is_wrong_is_said(job: Job, inputs: dict[str, str], said: str) -> None:
    """In one line, which is an error of the job; what was started until then is stopped."""
    ran = job.main(**inputs)
    assert ran.returncode == 1
    ((kind, line),) = [command for command in find_commands(ran.stderr) if command[0] != "notice"]
    assert kind == "error"
    assert line.startswith(said)
    job.post().check_returncode()
    assert [call for call in job.calls() if call.is_running] == []


@pytest.mark.needs("node", "nix")
def test_a_cache_that_nobody_vouches_for_is_not_used(job: Job) -> None:
    """What a registry holds is not trusted because it is there."""
    ran = job.main()
    assert ran.returncode == 0
    assert "no public key of it is known" in dict(find_commands(ran.stderr))["notice"]
    assert job.calls() == []


@pytest.mark.needs("node")
def test_nix_must_be_there(job: Job) -> None:
    """An action in JavaScript cannot use another one that installs it."""
    folder = job.folder / "programs"
    folder.mkdir()
    for name in ("bash", "env"):
        (folder / name).symlink_to(require_program(name))
    job.environment["PATH"] = str(folder)
    ran = job.main(public_keys=KEY)
    assert ran.returncode == 1
    assert "::error::Nix is not on PATH: use the action workflows/setup" in ran.stderr


# By act, with the program, a registry and Nix


@pytest.fixture
def cached(story: GithubStory) -> GithubStory:
    """Give a repository whose actions install this checkout's program, and that has committed its key."""
    install = story.own_actions / "workflows/setup/install.sh"
    install.write_text(INSTALL.format(program=story.program))
    story.commit({"public-key.txt": f"{story.key.public_key}\n"})
    return story


def build(name: str) -> Document:
    """Build an output of the flake."""
    return {
        "run": f'nix build --no-link --print-build-logs "path:$PWD/config#{name}"',
        "env": {"BASH_ENV": ""},
    }


def clean_machine(story: GithubStory) -> Machine:
    """Start a machine whose store is empty."""
    story.nix.sandbox.run("nix-store", "--gc").check()
    return story.checked_out()


@needs_act
def test_what_a_job_needs_is_substituted(cached: GithubStory) -> None:
    """From the first step after it to the job's end."""
    cached.commit_flake()
    cached.checked_out().run_action("publish", signing_key=cached.key.render()).check()
    ran = clean_machine(cached).run_steps(use("cache", {}), build("one")).check()
    assert "copying path" in ran.log
    assert "building" not in ran.log
    assert cached.key.render() not in ran.said + ran.log

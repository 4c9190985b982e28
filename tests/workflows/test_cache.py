"""The action that caches whatever a job builds: one step, and what it does when the job is over."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.github_commands import find_commands
from tests.support.programs import require_program
from tests.support.registries import REPO
from tests.workflows.documents import TOP, Document
from tests.workflows.github_story import GithubStory
from tests.workflows.machine import Machine, Result, use
from tests.workflows.test_origin import CASES, JOB_SECRETS

AT_ONCE = 10
ACTION = TOP / "workflows/cache"
KEY = "a-1:" + "A" * 43 + "="
TOKEN = "ghs_token"
needs_node = pytest.mark.needs("node", "nix")
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
if sys.argv[1] == "hook":
    print("post-build-hook = /hook")
if sys.argv[1:3] == ["queue", "run"]:
    if "--scope=bad" in sys.argv:
        sys.exit("nixcache-oci: error: --scope: bad")
    print("publishing what is queued in /queue", flush=True)
    print("::error::said by a build", flush=True)
    signal.pause()
if sys.argv[1:3] == ["queue", "drain"]:
    sys.exit(int(os.environ["DRAIN"]))
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
        return [call for call in calls if not verb or " ".join(call.arguments).startswith(verb)]

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
            **dict.fromkeys(("signing_key", "scope", "upstream_key_names"), ""),
            **dict.fromkeys(("allow_unsigned", "new_key", "strict"), "false"),
            "pull_requests": "true",
            "timeout": "300",
            "matrix": "null",
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
                "GITHUB_REF_NAME": "main",
                "GITHUB_WORKFLOW_REF": f"{REPO}/.github/workflows/ci.yml@refs/heads/main",
                "GITHUB_JOB": "build",
                "DRAIN": "0",
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


@needs_node
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


SECRET = SecretKey.generate("own-1")


@needs_node
@pytest.mark.parametrize("name", CASES)
def test_who_publishes(job: Job, name: str) -> None:
    """As with publish; the others read, say so once, and what runs beside their builds has no secret.

    Where a job publishes, one process has the key.
    """
    case = CASES[name]
    job.event = case.event.payload
    job.environment |= {
        **JOB_SECRETS,
        "GITHUB_EVENT_NAME": case.event.name,
        "NIXCACHE_TOKEN_FILE": "/some/file",
    }
    key = SECRET.render() if case.key is None else case.key
    ran = job.main(signing_key=key, public_keys=KEY, pull_requests=case.pull_requests)
    ran.check_returncode()
    notices = [line for kind, line in find_commands(ran.stderr) if kind == "notice"]
    (proxy,) = job.calls("proxy")
    told = "".join(str(call.environment) for call in job.calls() if call.arguments[:2] != ["queue", "run"])
    assert SECRET.render() not in told
    if case.publishes:
        assert notices == []
        (queue,) = job.calls("queue run")
        assert queue.environment["NIX_SIGNING_KEY"] == SECRET.render()
        assert job.file("ENV")["NIX_CONFIG"].splitlines()[-1] == "post-build-hook = /hook"
        assert proxy.environment["NIXCACHE_PUBLIC_KEYS"] == f"{KEY} {SECRET.public_key}"
    else:
        (notice,) = notices
        assert notice.startswith("publishing nothing: ")
        assert case.says in notice
        assert [call.arguments for call in job.calls()] == [["proxy"]]
    if not case.publishes and case.head != REPO:
        secrets = (TOKEN, "/some/file", *JOB_SECRETS.values())
        assert [secret for secret in secrets if secret in told] == []
    ended = job.post(signing_key=key)
    assert ended.returncode == 0
    assert len(job.calls("queue drain")) == case.publishes
    assert [call for call in job.calls() if call.is_running] == []
    assert SECRET.render() not in ran.stdout + ran.stderr + ended.stdout + ended.stderr + str(
        job.file("STATE")
    )


@needs_node
@pytest.mark.parametrize(
    ("matrix", "scope"),
    [
        (None, "main-ci.yml-build"),
        ({"os": "ubuntu", "n": {"a": 1}}, "main-ci.yml-build-ubuntu-1"),
        ({"os": "$(touch pwned) x"}, "main-ci.yml-build-__touch_pwned__x-fea51355"),
    ],
)
def test_jobs_at_once_have_scopes_of_their_own(job: Job, matrix: object, scope: str) -> None:
    """So no job of a matrix supersedes the roots of another; a scope is one word."""
    job.main(signing_key=SECRET.render(), matrix=json.dumps(matrix)).check_returncode()
    (queue,) = job.calls("queue run")
    assert queue.arguments == ["queue", "run", "--keep-used", f"--scope={scope}"]


@needs_node
@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_what_is_not_published(job: Job, strict: str, is_killed: bool) -> None:
    """A warning at the job's end, or where that is asked for its failure; no line of a log is a command."""
    job.main(signing_key=SECRET.render()).check_returncode()
    (queue,) = job.calls("queue run")
    if is_killed:
        psutil.Process(queue.pid).kill()
    else:
        job.environment["DRAIN"] = "1"
    ended = job.post(strict=strict, timeout="7")
    assert (ended.returncode == 1) is (strict == "true")
    ((kind, line),) = find_commands(ended.stderr)
    assert kind == ("error" if strict == "true" else "warning")
    assert "not everything that this job built is published" in line
    assert [call.arguments[2] for call in job.calls("queue drain")] == [] if is_killed else ["--timeout=7"]
    assert "said by a build" in ended.stderr
    assert [call for call in job.calls() if call.is_running] == []


@needs_node
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


@needs_node
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


THREE = "".join(f'{name} = mk "{name}" "echo {name} ${{dep.text}} > $out";' for name in ("one", "two", "zoo"))


@needs_act
def test_what_a_job_builds_is_published(cached: GithubStory) -> None:
    """All of three builds, once; a job that then substitutes them writes nothing."""
    cached.commit_flake(THREE)
    given = {"signing-key": cached.key.render()}
    builds = [build(name) for name in ("one", "two", "zoo")]
    first = cached.checked_out().run_steps(use("cache", given), *builds).check()
    assert "building" in first.log
    names = [name for record in cached.records() for name, _ in record.roots]
    assert sorted(names) == ["one", "two", "zoo"]
    assert {record.scope for record in cached.records()} == {"main-workflow.yml-job"}
    count = len(cached.records())
    second = clean_machine(cached).run_steps(use("cache", given), *builds).check()
    assert "copying path" in second.log
    assert "building '" not in second.log
    assert len(cached.records()) == count
    assert "❗" not in first.said + second.said
    assert cached.key.render() not in first.log + first.said + second.log


@needs_act
def test_jobs_at_once_lose_nothing(cached: GithubStory) -> None:
    """Each job of a matrix publishes its own and what they share, into one cache."""
    numbers = range(AT_ONCE)
    shared = 'mk "shared" "echo > $out"'
    own = (f'own{n} = mk "own{n}" "echo ${{{shared}}} > $out";' for n in numbers)
    cached.commit_flake("".join(own))
    machines = [cached.checked_out() for _ in numbers]

    def run(number: int) -> Result:
        given = {"signing-key": cached.key.render(), "matrix": json.dumps({"n": number})}
        return machines[number].run_steps(use("cache", given), build(f"own{number}"))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for ran in pool.map(run, numbers):
            assert "❗" not in ran.check().said
    roots = {(record.scope, name) for record in cached.records() for name, _ in record.roots}
    assert roots >= {(f"main-workflow.yml-job-{n}", f"own{n}") for n in numbers}


@needs_act
def test_a_job_that_fails_publishes_what_it_has_built(cached: GithubStory) -> None:
    """The next run goes on from there; a job that is cancelled ends the same way."""
    cached.commit_flake()
    given = {"signing-key": cached.key.render()}
    ran = cached.checked_out().run_steps(
        use("cache", given), build("one"), {"run": "exit 1", "env": {"BASH_ENV": ""}}
    )
    assert not ran.is_success
    ((name, _),) = [root for record in cached.records() for root in record.roots]
    assert name == "one"


@needs_act
def test_what_a_job_uses_is_kept(cached: GithubStory) -> None:
    """A job that only substitutes leaves a record of that and nothing else; one that uses nothing, none."""
    cached.commit_flake()
    cached.checked_out().run_action("publish", signing_key=cached.key.render()).check()
    (published,) = cached.records()
    given = {"signing-key": cached.key.render()}
    ran = clean_machine(cached).run_steps(use("cache", given), build("one")).check()
    assert "building" not in ran.log
    _, used = cached.records()
    assert (used.scope, used.is_partial) == ("main-workflow.yml-job", True)
    assert [path for _, path in used.roots] == [path for _, path in published.roots]
    clean_machine(cached).run_steps(use("cache", given), {"run": "true", "env": {"BASH_ENV": ""}}).check()
    assert len(cached.records()) == 2


@needs_act
@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_registry_that_takes_nothing(cached: GithubStory, strict: str) -> None:
    """The job says so at its end, within its limit, and fails where it should."""
    cached.commit_flake(THREE)
    machine = cached.checked_out()
    given = {"signing-key": cached.key.render(), "token": "user:wrong", "timeout": "3", "strict": strict}
    ran = machine.run_steps(use("cache", given), build("one"))
    assert ran.is_success is (strict == "false")
    assert "not everything that this job built is published" in ran.said
    assert cached.records() == []

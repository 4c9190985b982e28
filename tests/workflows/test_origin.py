"""Whose code the publish action builds, and what that code can find: only this repository's own publishes."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.nix_story import SYSTEM
from tests.support.github_commands import find_commands
from tests.support.registries import REPO
from tests.workflows.documents import TOP, read, steps_of
from tests.workflows.github_story import GithubStory
from tests.workflows.machine import Event, Machine, Result

# What a job's env and GitHub itself put beside the inputs.
JOB_SECRETS = {
    "SOME_PASSWORD": "hunter_1a5e",
    "GH_TOKEN": "ghp_2a5e",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "oidc_3a5e",
    "NIX_GITHUB_TOKEN": "ghp_4a5e",
}
# What the step is given of these says that the code is trusted.
CHOSEN = ("NIX_SIGNING_KEY", "GITHUB_TOKEN", "INPUT_ACCEPT_FLAKE_CONFIG")
needs_act = pytest.mark.needs("nix", "git", "act")


def pull_request(repository: str | None, name: str = "pull_request") -> Event:
    """Describe a pull request; without a repository, as where the fork is deleted."""
    repo = None if repository is None else {"full_name": repository}
    return Event(name, "refs/pull/7/merge", {"pull_request": {"head": {"repo": repo}}})


def workflow_run(repository: str | None) -> Event:
    head = None if repository is None else {"full_name": repository}
    return Event("workflow_run", payload={"workflow_run": {"head_repository": head}})


@dataclass(frozen=True, slots=True)
class Case:
    """An event, and what becomes of it.

    Attributes:
        event: why the action runs.
        says: why nothing is published; empty where something is.
        head: what the event tells of whose code it is.
        pull_requests: the input.
        key: the input signing-key; None for the right one.
    """

    event: Event
    says: str = ""
    head: str = ""
    pull_requests: str = "false"
    key: str | None = None

    @property
    def publishes(self) -> bool:
        return not self.says


THEIRS = "stranger/hello"
CASES = {
    "own push": Case(Event()),
    "own tag": Case(Event("push", "refs/tags/v1")),
    "own schedule": Case(Event("schedule")),
    "by hand": Case(Event("workflow_dispatch")),
    "own workflow_run": Case(workflow_run(REPO), "", REPO),
    "own pull request": Case(pull_request(REPO), "the input pull-requests is not true", REPO),
    "own pull request that may": Case(pull_request(REPO), "", REPO, "true"),
    "fork": Case(pull_request(THEIRS), f"that of {THEIRS}", THEIRS),
    "fork that asks": Case(pull_request(THEIRS), f"that of {THEIRS}", THEIRS, "true"),
    "deleted fork": Case(pull_request(None), "pull_request does not tell", "", "true"),
    "bot": Case(pull_request(REPO), "there is no signing-key", REPO, "true", ""),
    "bot with a blank key": Case(pull_request(REPO), "there is no signing-key", REPO, "true", " \n"),
    "workflow_run of a stranger": Case(workflow_run(THEIRS), THEIRS, THEIRS),
    "workflow_run of nobody": Case(workflow_run(None), "workflow_run does not tell"),
    "comment": Case(Event("issue_comment"), "issue_comment does not tell"),
    "event of any user": Case(Event("watch"), "watch does not tell"),
}


def publish(story: GithubStory, machine: Machine, case: Case) -> Result:
    """Run the action, in a job that has secrets of its own, and accepts the flake's settings."""
    machine.environment |= JOB_SECRETS
    key = story.key.render() if case.key is None else case.key
    return machine.run_action(
        "publish", signing_key=key, pull_requests=case.pull_requests, accept_flake_config="true"
    )


@needs_act
@pytest.mark.parametrize("name", CASES)
def test_who_publishes(story: GithubStory, name: str) -> None:
    """The others are built, say so once, and only read; and no process has a secret during a build.

    The action's expressions decide that before any program runs: a stranger's step is given no secret.
    """
    case = CASES[name]
    story.commit_flake()
    machine = story.checked_out(case.event)
    seen = machine.spy_on("nix")
    story.ghcr.server.reset_requests()
    ran = publish(story, machine, case).check()
    assert "building '/nix/store/" in ran.log
    assert len(story.records()) == case.publishes
    commands = find_commands(ran.log)
    token = machine.secrets["GITHUB_TOKEN"]
    if case.publishes:
        assert [found for found in commands if found[0] == "notice"] == []
        assert ran.outputs == {"public-key": str(story.key.public_key)}
        assert [ran.given[one] for one in CHOSEN] == [story.key.render(), token, "true"]
    else:
        (notice,) = [value for kind, value in commands if kind == "notice"]
        assert case.says in notice
        assert notice.startswith("building, and pushing nothing: ")
        assert ran.outputs == {"public-key": ""}
        assert [one for one in story.ghcr.server.requests if one.method not in ("GET", "HEAD")] == []
        if case.key is None:
            assert [ran.given[one] for one in CHOSEN] == ["", "", "false"]
    told = seen.read_text()
    assert told.count("\nprocess\n") >= 2
    assert "NIX_CONFIG=" in told
    secrets = (story.key.render(), token, *JOB_SECRETS.values())
    assert [secret for secret in secrets if secret in told] == []


@pytest.mark.parametrize("token", ["ghs_token", "user:password"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.key is None])
def test_a_secret_reaches_the_program_only_of_own_code(tmp_path: Path, name: str, token: str) -> None:
    """The script decides the same once more, should expressions ever hand it a secret beside foreign code."""
    case = CASES[name]
    machine = Machine(tmp_path / "machine", {"PATH": os.environ["PATH"]}, case.event, {}, {})
    machine.record()
    machine.put("nix", "#!/bin/sh\n")
    (step,) = steps_of(read(TOP / "workflows/publish/action.yml"))
    given = {
        **machine.environment,
        **JOB_SECRETS,
        **{name: "false" for name in step["env"] if name.startswith("INPUT_")},
        "GITHUB_ACTIONS": "true",
        "GITHUB_EVENT_NAME": case.event.name,
        "GITHUB_REPOSITORY": REPO,
        "INPUT_ACCEPT_FLAKE_CONFIG": "true",
        "INPUT_PULL_REQUESTS": case.pull_requests,
        "HEAD_REPOSITORY": case.head,
        "NIX_SIGNING_KEY": "key:8a5e",
        "NIXCACHE_TOKEN_FILE": "/some/file",
        "NIXCACHE_PASS_ENV": "SOME_PASSWORD",
        "NIXCACHE_UPSTREAM": "https://user:hunter_6a5e@cache.example",
        "NIX_CONFIG": "cores = 1\naccess-tokens = github.com=ghp_7a5e\nmax-jobs = 1",
        "GITHUB_TOKEN": token,
    }
    subprocess.run(
        ["bash", TOP / "workflows/publish/publish.sh"], env=given, cwd=machine.workspace, check=True
    )
    arguments, environment = machine.call()
    assert ("--build-only" in arguments) is not case.publishes
    assert ("--accept-flake-config" in arguments) is case.publishes
    if case.publishes:
        assert environment["NIXCACHE_TOKEN" if ":" in token else "GITHUB_TOKEN"] == token
        return
    told = str(environment)
    secrets = ("key:8a5e", token, "/some/file", "hunter_6a5e", "ghp_7a5e", *JOB_SECRETS.values())
    assert [secret for secret in secrets if secret in told] == []
    assert "NIXCACHE_PASS_ENV" not in environment
    expected = {"NIX_CONFIG": "cores = 1\nmax-jobs = 1\n", "DOCKER_CONFIG": "/nonexistent"}
    expected |= {"NIXCACHE_REGISTRY": "false", "GITHUB_ACTIONS": "true"}
    assert environment.items() >= expected.items()


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    """A program of a stranger's, beside the proof that it ran."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho ran >{hook}.ran\n")
    hook.chmod(0o755)
    return hook


def has_run(hook: Path) -> bool:
    return hook.with_suffix(".ran").exists()


@needs_act
def test_a_strangers_flake_brings_no_settings(story: GithubStory, hook: Path) -> None:
    """Whatever the job's own nix.conf accepts: a hook of theirs would run as this user."""
    # One is built while the other is evaluated, which is before anything could name the flake to `nix build`.
    early = 'mk (builtins.readFile (mk "early" "printf late > $out")) "echo ${dep.text} > $out"'
    story.commit_flake(f"one = {early};", settings=f'nixConfig.post-build-hook = "{hook}";')
    for name in ("fork", "own push"):
        machine = story.checked_out(CASES[name].event)
        machine.environment["NIX_CONFIG"] += "\naccept-flake-config = true"
        assert "building '/nix/store/" in publish(story, machine, CASES[name]).check().log
        assert has_run(hook) is CASES[name].publishes
        story.nix.sandbox.run("nix-store", "--gc").check()


@needs_act
@pytest.mark.parametrize("name", ["HOME", "XDG_CONFIG_HOME", "NIX_CONF_DIR", "NIX_USER_CONF_FILES"])
def test_a_strangers_checkout_has_no_settings(story: GithubStory, hook: Path, name: str) -> None:
    """Wherever the job has Nix look for some: a hook that stands there would run as this user."""
    settings = f"post-build-hook = {hook}\nbuild-users-group =\n"
    story.commit(dict.fromkeys((".config/nix/nix.conf", "nix/nix.conf", "nix.conf"), settings))
    story.commit_flake()
    machine = story.checked_out(CASES["fork"].event)
    machine.environment.pop("NIX_USER_CONF_FILES", None)
    folder = machine.workspace / "nix.conf" if name == "NIX_USER_CONF_FILES" else machine.workspace
    machine.environment[name] = str(folder)
    assert "building '/nix/store/" in publish(story, machine, CASES["fork"]).check().log
    assert not has_run(hook)


@needs_act
def test_what_a_flake_prints_is_no_command(story: GithubStory) -> None:
    """Neither its traces, nor errors, nor build logs, nor names; ours are read before, between and after."""
    evil = r"x\n::set-output name=public-key::y\n::stop-commands::z"
    story.commit_flake(f"""
        traced = builtins.trace "{evil}" (mk "traced" "echo ${{dep.text}} > $out");
        thrown = throw "{evil}";
        "::add-mask::q ##[add-mask]q" = throw "##[add-mask]z";
        logged = mk "logged" "echo '##[add-mask]l'; printf 'a\\r::set-output name=k::evil\\n'; exit 1";
    """)
    ran = publish(story, story.checked_out(), CASES["own push"]).check_failure(
        "::set-output name=public-key::y"
    )
    commands = find_commands(ran.log)
    assert {kind for kind, _ in commands} == {"error"}
    named = {value.split(":")[0] for _, value in commands}
    assert {f"packages.{SYSTEM}.thrown", f"packages.{SYSTEM}.logged"} <= named
    assert ran.outputs == {"public-key": str(story.key.public_key)}

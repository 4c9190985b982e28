"""Whose code the publish action builds, and what that code can find: only this repository's own publishes."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.nix_story import SYSTEM
from tests.support.registries import REPO
from tests.workflows.documents import TOP, read, steps_of
from tests.workflows.expression import Payload, Scope, Value
from tests.workflows.github_story import SETUP, GithubStory, flake
from tests.workflows.recorder import Recorder, spy_on
from tests.workflows.runner import Event, Job, Result, find_commands

pytestmark = pytest.mark.needs("nix", "git")

ACTION = TOP / "workflows/publish"
MAY_PUSH = {"packages": "write"}
# What a job's env and GitHub itself put beside the inputs.
JOB_SECRETS = {
    "SOME_PASSWORD": "hunter_1a5e",
    "GH_TOKEN": "ghp_2a5e",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "oidc_3a5e",
    "NIX_GITHUB_TOKEN": "ghp_4a5e",
}


def pull_request(repository: str | None, name: str = "pull_request") -> Event:
    """Describe a pull request; without a repository, as where the fork is deleted."""
    repo = None if repository is None else Payload({"full_name": repository})
    return Event(
        name, "refs/pull/7/merge", Payload({"pull_request": Payload({"head": Payload({"repo": repo})})})
    )


def workflow_run(repository: str | None) -> Event:
    head = None if repository is None else Payload({"full_name": repository})
    return Event("workflow_run", payload=Payload({"workflow_run": Payload({"head_repository": head})}))


@dataclass(frozen=True, slots=True)
class Case:
    """An event, what the action is given, and what becomes of it."""

    event: Event
    publishes: bool
    says: str = ""
    key: str | None = None  # None for the right one
    pull_requests: str = "false"


CASES = {
    "own push": Case(Event(), publishes=True),
    "own tag": Case(Event("push", "refs/tags/v1"), publishes=True),
    "own schedule": Case(Event("schedule"), publishes=True),
    "by hand": Case(Event("workflow_dispatch"), publishes=True),
    "own workflow_run": Case(workflow_run(REPO), publishes=True),
    "own pull request": Case(pull_request(REPO), publishes=False, says="the input pull-requests is not true"),
    "own pull request that may": Case(pull_request(REPO), publishes=True, pull_requests="true"),
    "fork": Case(pull_request("stranger/hello"), publishes=False, says="that of stranger/hello"),
    "fork that asks": Case(
        pull_request("stranger/hello"), publishes=False, says="that of stranger/hello", pull_requests="true"
    ),
    "deleted fork": Case(
        pull_request(None), publishes=False, says="pull_request does not tell", pull_requests="true"
    ),
    "bot": Case(
        pull_request(REPO), publishes=False, says="there is no signing-key", key="", pull_requests="true"
    ),
    "bot with a blank key": Case(
        pull_request(REPO), publishes=False, says="there is no signing-key", key=" \n", pull_requests="true"
    ),
    "workflow_run of a stranger": Case(
        workflow_run("stranger/hello"), publishes=False, says="stranger/hello"
    ),
    "workflow_run of nobody": Case(workflow_run(None), publishes=False, says="workflow_run does not tell"),
    "comment": Case(Event("issue_comment"), publishes=False, says="issue_comment does not tell"),
    "event of any user": Case(Event("watch"), publishes=False, says="watch does not tell"),
}


def action_job(story: GithubStory, case: Case) -> Job:
    job = story.job(case.event, MAY_PUSH)
    job.environment |= JOB_SECRETS
    job.use(SETUP, {})
    story.check_out(job, "refs/heads/main")
    return job


def run_action(story: GithubStory, job: Job, case: Case, **inputs: str) -> Result:
    key = story.key.render() if case.key is None else case.key
    given = {"signing-key": key, "pull-requests": case.pull_requests, **inputs}
    return job.run_action(ACTION, given)


@pytest.mark.parametrize("name", CASES)
def test_who_publishes(story: GithubStory, name: str) -> None:
    """The others are built, say so once, and only read; and no process has a secret during a build."""
    case = CASES[name]
    story.commit_flake(flake('one = mk "one" "echo ${dep.text} > $out";', story.write_input("text")))
    job = action_job(story, case)
    seen = spy_on(job)
    story.ghcr.server.reset_requests()
    ran = run_action(story, job, case).check()
    assert "building '/nix/store/" in ran.log
    assert len(story.records()) == case.publishes
    commands = find_commands(ran.log)
    if case.publishes:
        assert [found for found in commands if found[0] == "notice"] == []
        assert ran.outputs == {"public-key": str(story.key.public_key)}
    else:
        (notice,) = [value for kind, value in commands if kind == "notice"]
        assert case.says in notice
        assert notice.endswith(": it is built, and nothing is pushed")
        assert ran.outputs == {"public-key": ""}
        sent = [one for one in story.ghcr.server.requests if one.method not in ("GET", "HEAD")]
        assert case.event.name == "push" or sent == []
    told = seen.read_text()
    assert told.count("\nprocess\n") >= 2
    assert "NIX_CONFIG=" in told
    secrets = (story.key.render(), job.permitted.token, *JOB_SECRETS.values())
    assert [secret for secret in secrets if secret in told] == []


@pytest.mark.parametrize("key", ["", " ", "\n", "\t\r\n", "\u00a0"])
def test_a_blank_key_is_none(story: GithubStory, key: str) -> None:
    """A secret that is not set may come with a line's end: nothing is published unsigned by mistake."""
    case = Case(Event(), publishes=False, key=key)
    job = action_job(story, case)
    ran = run_action(story, job, case)
    assert ran.outcome == "failure"
    assert "::error::there is no signing-key: nixcache-oci keygen NAME-1 makes one" in ran.log
    assert story.records() == []


def given_to_step(story: GithubStory, case: Case) -> dict[str, str]:
    """Evaluate what the publish step's environment says."""
    document = read(ACTION / "action.yml")
    inputs: dict[str, Value] = {name: f"given {name}" for name in document["inputs"]}
    inputs["pull-requests"] = case.pull_requests
    (step,) = steps_of(document)
    scope = Scope({"github": story.job(case.event).github(), "inputs": inputs})
    return {name: scope.render(value) for name, value in step["env"].items()}


@pytest.mark.parametrize("token", ["ghs_token", "user:password"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.key is None])
def test_a_secret_reaches_the_step_only_of_own_code(story: GithubStory, name: str, token: str) -> None:
    """The expressions decide before any program runs, and the script decides the same."""
    case = CASES[name]
    given = given_to_step(story, case)
    chosen = (given["NIX_SIGNING_KEY"], given["GITHUB_TOKEN"], given["INPUT_ACCEPT_FLAKE_CONFIG"])
    if case.publishes:
        assert chosen == ("given signing-key", "given token", "given accept-flake-config")
    else:
        assert chosen == ("", "", "false")
    job = story.job(case.event, MAY_PUSH)
    recorder = Recorder(job)
    job.environment |= {"NIX_SIGNING_KEY": "key", "GITHUB_TOKEN": "token", **JOB_SECRETS}
    given = {
        **{name: "false" for name in given if name.startswith("INPUT_")},
        "INPUT_ACCEPT_FLAKE_CONFIG": "true",
        "INPUT_PULL_REQUESTS": case.pull_requests,
        "HEAD_REPOSITORY": given["HEAD_REPOSITORY"],
        "NIX_SIGNING_KEY": story.key.render(),
        "NIXCACHE_TOKEN_FILE": "/some/file",
        "NIXCACHE_PASS_ENV": "SOME_PASSWORD",
        "NIXCACHE_UPSTREAM": "https://user:hunter_6a5e@cache.example",
        "NIX_CONFIG": "cores = 1\naccess-tokens = github.com=ghp_7a5e\nmax-jobs = 1",
        "GITHUB_TOKEN": token,
    }
    outcome, _ = job.run_shell(f"exec bash {ACTION}/publish.sh", given, None)
    assert outcome == "success", job.log
    (call,) = recorder.calls()
    assert ("--build-only" in call.arguments) is not case.publishes
    assert ("--accept-flake-config" in call.arguments) is case.publishes
    if case.publishes:
        assert call.environment["NIXCACHE_TOKEN" if ":" in token else "GITHUB_TOKEN"] == token
    else:
        told = str(call.environment)
        secrets = (story.key.render(), token, "/some/file", "hunter_6a5e", "ghp_7a5e", *JOB_SECRETS.values())
        assert [secret for secret in secrets if secret in told] == []
        assert "NIXCACHE_PASS_ENV" not in call.environment
        assert call.environment["NIX_CONFIG"] == "cores = 1\nmax-jobs = 1\n"
        assert call.environment["DOCKER_CONFIG"] == "/nonexistent"
        assert call.environment["NIXCACHE_REGISTRY"] == "false"
        assert call.environment["GITHUB_ACTIONS"] == "true"


def test_a_strangers_flake_brings_no_settings(story: GithubStory, tmp_path: Path) -> None:
    """Whatever the job's own nix.conf accepts: a hook of theirs would run as this user."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho ran >{tmp_path}/ran\n")
    hook.chmod(0o755)
    config = f'nixConfig.post-build-hook = "{hook}";'
    # One is built while the other is evaluated, which is before anything could name the flake to `nix build`.
    early = 'mk (builtins.readFile (mk "early" "printf late > $out")) "echo ${dep.text} > $out"'
    text = flake(f"one = {early};", story.write_input("text"))
    story.commit_flake(text.replace("{", f"{{ {config}", 1))
    for name, runs in (("fork", False), ("own push", True)):
        job = action_job(story, CASES[name])
        job.environment["NIX_CONFIG"] += "\naccept-flake-config = true"
        run_action(story, job, CASES[name], **{"accept-flake-config": "true"}).check()
        assert "building '/nix/store/" in job.log
        assert (tmp_path / "ran").exists() is runs
        story.nix.sandbox.run("nix-store", "--gc").check()


@pytest.mark.parametrize("name", ["HOME", "XDG_CONFIG_HOME", "NIX_CONF_DIR", "NIX_USER_CONF_FILES"])
def test_a_strangers_checkout_has_no_settings(story: GithubStory, tmp_path: Path, name: str) -> None:
    """Wherever the job has Nix look for some: a hook that stands there would run as this user."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho ran >{tmp_path}/ran\n")
    hook.chmod(0o755)
    (story.clone / ".config/nix").mkdir(parents=True)
    (story.clone / "nix").mkdir()
    for path in (".config/nix/nix.conf", "nix/nix.conf", "nix.conf"):
        (story.clone / path).write_text(f"post-build-hook = {hook}\nbuild-users-group =\n")
    story.commit_flake(flake('one = mk "one" "echo ${dep.text} > $out";', story.write_input("text")))
    job = action_job(story, CASES["fork"])
    job.environment.pop("NIX_USER_CONF_FILES", None)
    folder = job.workspace / "nix.conf" if name == "NIX_USER_CONF_FILES" else job.workspace
    job.environment[name] = str(folder)
    run_action(story, job, CASES["fork"]).check()
    assert "building '/nix/store/" in job.log
    assert not (tmp_path / "ran").exists()


def test_what_a_flake_prints_is_no_command(story: GithubStory) -> None:
    """Neither its traces, nor errors, nor build logs, nor names; ours are read before, between and after."""
    evil = r"x\n::set-output name=public-key::y\n::stop-commands::z"
    story.commit_flake(
        flake(
            f"""
            traced = builtins.trace "{evil}" (mk "traced" "echo ${{dep.text}} > $out");
            thrown = throw "{evil}";
            "::add-mask::q ##[add-mask]q" = throw "##[add-mask]z";
            logged = mk "logged" "echo '##[add-mask]l'; printf 'a\\r::set-output name=k::evil\\n'; exit 1";
            """,
            story.write_input("text"),
        )
    )
    ran = run_action(story, action_job(story, CASES["own push"]), CASES["own push"])
    assert ran.outcome == "failure"
    assert "::set-output name=public-key::y" in ran.log
    commands = find_commands(ran.log)
    assert {kind for kind, _ in commands} == {"error"}
    named = {value.split(":")[0] for _, value in commands}
    assert {f"packages.{SYSTEM}.thrown", f"packages.{SYSTEM}.logged"} <= named
    assert ran.outputs == {"public-key": str(story.key.public_key)}

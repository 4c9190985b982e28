"""The publish action, where not all goes well, and what it hands on to the program."""

import pytest

from tests.clients.nix_story import SYSTEM
from tests.workflows.documents import TEMPLATE, TOP
from tests.workflows.github_story import SETUP, GithubStory, flake
from tests.workflows.recorder import Recorder, restrict_path
from tests.workflows.runner import Event, Result
from tests.workflows.test_origin import pull_request

pytestmark = pytest.mark.needs("nix", "git")

PUBLISH = TEMPLATE / ".github/workflows/publish-cache.yml"
ACTION = TOP / "workflows/publish"
ONE = 'one = mk "one" "echo ${dep.text} > $out";'
MAY_PUSH = {"packages": "write"}
# What a shell would act on, were it ever pasted into a script; and what a program would take for a flag.
NASTY = "$(touch pwned) `touch pwned` '\"; touch pwned #"


def publish(story: GithubStory, event: Event, **inputs: str) -> Result:
    """Run the action where the owner's flake is checked out."""
    job = story.job(event, MAY_PUSH)
    job.use(f"{SETUP}@v1", {})
    story.check_out(job, "refs/heads/main")
    return job.run_action(ACTION, {name.replace("_", "-"): value for name, value in inputs.items()})


def test_one_failing_output_leaves_the_others(story: GithubStory) -> None:
    """What was built is published; the job fails at its end, and then no key is committed."""
    failing = 'bad = mk "bad" "echo the cause >&2; exit 3"; zoo = mk "zoo" "echo zoo > $out";'
    story.commit_flake(flake(ONE + failing, story.write_input("text")))
    ran = story.run(PUBLISH, "publish")
    assert ran.outcome == "failure"
    assert f"::error::packages.{SYSTEM}.bad: " in ran.log
    assert "✗" in ran.summary
    (record,) = story.records()
    assert {name for name, _ in record.roots} == {f"packages.{SYSTEM}.one", f"packages.{SYSTEM}.zoo"}
    assert record.failed == (f"packages.{SYSTEM}.bad",)
    assert ran.outputs == {"public-key": str(story.key.public_key)}
    assert story.run(PUBLISH, "public-key", needs={"publish": ran}).outcome == "skipped"


def test_no_key_is_committed_where_none_is_known(story: GithubStory) -> None:
    """A publish that failed before it began leaves nothing to commit, and a tag is no place to commit to."""
    story.commit({"config/flake.nix": "{"})
    nothing = story.run(PUBLISH, "publish")
    assert nothing.outcome == "failure"
    assert "syntax error" in nothing.log
    assert story.run(PUBLISH, "public-key", needs={"publish": nothing}).outcome == "skipped"
    story.commit_flake(flake(ONE, story.write_input("text")))
    tag = Event("push", "refs/tags/v1")
    story.tag("v1")
    tagged = story.run(PUBLISH, "publish", event=tag).check()
    assert story.run(PUBLISH, "public-key", event=tag, needs={"publish": tagged}).outcome == "skipped"
    assert [record.scope for record in story.records()] == [f"v1-{SYSTEM}"]


def test_pull_request_target_is_refused(story: GithubStory) -> None:
    """It gives secrets to a job that may have checked out a stranger's code: nothing is even built."""
    story.commit_flake(flake(ONE, story.write_input("text")))
    ran = publish(
        story, pull_request("stranger/hello", "pull_request_target"), signing_key=story.key.render()
    )
    assert ran.outcome == "failure"
    assert "::error::publishing is refused on pull_request_target" in ran.log
    assert "to push" not in ran.log


def test_an_input_cannot_give_commands(story: GithubStory) -> None:
    """What it has behind a line's end would be a command to GitHub."""
    ran = publish(story, Event(), strict="no\n::add-mask::x\r::stop-commands::y")
    assert (
        "::error::input strict: expected true or false, got 'no ::add-mask::x ::stop-commands::y'\n"
        in ran.log
    )


def test_without_a_key_nothing_is_published_by_mistake(story: GithubStory) -> None:
    """A secret with a misspelt name is an empty text; the line says what to do."""
    story.commit_flake(flake(ONE, story.write_input("text")))
    ran = publish(story, Event())
    assert ran.outcome == "failure"
    assert "nixcache-oci keygen NAME-1" in ran.log
    assert story.records() == []
    meant = publish(story, Event(), allow_unsigned="true").check()
    assert meant.outputs == {"public-key": ""}
    assert len(story.records()) == 1


@pytest.mark.parametrize("given", ["yes", "True", ""])
def test_a_switch_is_true_or_false(story: GithubStory, given: str) -> None:
    """Anything else is a mistake, and strict is not silently off."""
    ran = publish(story, Event(), strict=given, allow_unsigned="true")
    assert ran.outcome == "failure"
    assert f"::error::input strict: expected true or false, got '{given}'" in ran.log


def test_what_is_missing_is_named(story: GithubStory) -> None:
    """Without setup before it, or without Nix, one line tells."""
    job = story.job()
    restrict_path(job, "bash")
    ran = job.run_action(ACTION, {})
    assert ran.outcome == "failure"
    assert "::error::nixcache-oci is not on PATH: use the action workflows/setup" in ran.log
    Recorder(job)
    assert "::error::Nix is not on PATH" in job.run_action(ACTION, {}).log


def test_inputs_become_arguments(story: GithubStory) -> None:
    """Each input reaches the program, unharmed whatever is in it, and the key reaches nothing else."""
    job = story.job(permissions=MAY_PUSH)
    recorder = Recorder(job)
    job.run_action(
        ACTION,
        {
            "flake": NASTY,
            "attr": f"packages.*\n\n  {NASTY}\n--strict",
            "checks": "true",
            "strict": "true",
            "dry-run": "true",
            "scope": NASTY,
            "upstream-key-names": "a-1\nb-1",
            "accept-flake-config": "true",
            "repo": "other/name",
            "registry": "registry.example",
            "image": "image",
            "signing-key": story.key.render(),
            "token": NASTY,
        },
    ).check()
    (call,) = recorder.calls()
    assert call.arguments == [
        "publish",
        "--dry-run",
        "--checks",
        "--strict",
        f"--scope={NASTY}",
        "--attr=packages.*",
        f"--attr={NASTY}",
        "--attr=--strict",
        "--upstream-key-name=a-1",
        "--upstream-key-name=b-1",
        "--accept-flake-config",
    ]
    assert (
        call.environment.items()
        >= {
            "NIXCACHE_CONFIG_DIR": NASTY,
            "NIXCACHE_REPO": "other/name",
            "NIXCACHE_REGISTRY": "registry.example",
            "NIXCACHE_IMAGE": "image",
            "NIX_SIGNING_KEY": story.key.render(),
            "NIXCACHE_TOKEN": NASTY,
        }.items()
    )
    assert not list(job.folder.rglob("pwned"))


def test_a_key_may_lie_in_a_file(story: GithubStory) -> None:
    """As on a machine of one's own: then it is no publish without a key."""
    job = story.job(permissions=MAY_PUSH)
    recorder = Recorder(job)
    job.environment["NIXCACHE_SIGNING_KEY_FILE"] = "/etc/key"
    job.run_action(ACTION, {}).check()
    (call,) = recorder.calls()
    assert call.arguments == ["publish"]


def test_what_is_not_given_is_left_to_the_program(story: GithubStory) -> None:
    """Its own defaults count, and those that the job's environment sets."""
    job = story.job(permissions=MAY_PUSH)
    recorder = Recorder(job)
    job.environment["NIXCACHE_CONFIG_DIR"] = "elsewhere"
    job.run_action(
        ACTION, {"allow-unsigned": "true", "new-key": "true", "upstream-key-names": "none"}
    ).check()
    (call,) = recorder.calls()
    assert call.arguments == ["publish", "--allow-unsigned", "--new-key", "--upstream-key-name="]
    assert call.environment["NIXCACHE_CONFIG_DIR"] == "elsewhere"
    assert call.environment["NIXCACHE_REGISTRY"] == story.ghcr.server.host
    assert call.environment["NIXCACHE_REPO"] == "octocat/hello"
    assert call.environment["GITHUB_TOKEN"] == story.ghcr.server.token
    assert "NIXCACHE_IMAGE" not in call.environment

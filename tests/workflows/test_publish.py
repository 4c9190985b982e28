"""The actions publish and gc, where not all goes well, and what they hand on to the program."""

import pytest

from tests.clients.nix_story import SYSTEM
from tests.support.registries import REPO
from tests.workflows.documents import TEMPLATE
from tests.workflows.github_story import ONE, GithubStory
from tests.workflows.machine import Event
from tests.workflows.test_origin import pull_request

pytestmark = pytest.mark.needs("nix", "git", "act")

PUBLISH = TEMPLATE / ".github/workflows/publish-cache.yml"
# What a shell would act on, were it ever pasted into a script; and what a program would take for a flag.
NASTY = "$(touch pwned) `touch pwned` '\"; touch pwned #"


def test_one_failing_output_leaves_the_others(story: GithubStory) -> None:
    """What was built is published; the job fails at its end, and then no key is committed."""
    failing = 'bad = mk "bad" "echo the cause >&2; exit 3"; zoo = mk "zoo" "echo zoo > $out";'
    head = story.commit_flake(ONE + failing)
    ran = story.run(PUBLISH).check_failure(f"::error::packages.{SYSTEM}.bad: ")
    assert "✗" in ran.summary
    (record,) = story.records()
    assert {name for name, _ in record.roots} == {f"packages.{SYSTEM}.one", f"packages.{SYSTEM}.zoo"}
    assert record.failed == (f"packages.{SYSTEM}.bad",)
    assert story.head() == head


def test_no_key_is_committed_where_none_is_known(story: GithubStory) -> None:
    """A publish that failed before it began leaves nothing to commit, and a tag is no place to commit to."""
    head = story.commit({"config/flake.nix": "{"})
    story.run(PUBLISH).check_failure("syntax error")
    assert story.head() == head
    head = story.commit_flake()
    story.git("tag", "v1", "main", folder=story.remote)
    assert "is not committed" not in story.run(PUBLISH, Event("push", "refs/tags/v1")).check().log
    assert [record.scope for record in story.records()] == [f"v1-{SYSTEM}"]
    assert story.head() == story.head("refs/tags/v1") == head


def test_pull_request_target_is_refused(story: GithubStory) -> None:
    """It gives secrets to a job that may have checked out a stranger's code: nothing is even built."""
    story.commit_flake()
    machine = story.checked_out(pull_request("stranger/hello", "pull_request_target"))
    ran = machine.run_action("publish", signing_key=story.key.render()).check_failure(
        "::error::publishing is refused on pull_request_target"
    )
    assert "to push" not in ran.log


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t\r\n", "\u00a0"])
def test_without_a_key_nothing_is_published_by_mistake(story: GithubStory, blank: str) -> None:
    """A secret with a misspelt name is an empty text, or a line's end; the line says what to do."""
    story.commit_flake()
    story.checked_out().run_action("publish", signing_key=blank).check_failure(
        "::error::there is no signing-key: nixcache-oci keygen NAME-1 makes one"
    )
    assert story.records() == []


def test_a_publish_may_be_without_a_key(story: GithubStory) -> None:
    """Where that is said."""
    story.commit_flake()
    ran = story.checked_out().run_action("publish", allow_unsigned="true").check()
    assert ran.outputs == {"public-key": ""}
    assert len(story.records()) == 1


@pytest.mark.parametrize("given", ["yes", "True", "", "no\n::add-mask::x\r::stop-commands::y"])
def test_a_switch_is_true_or_false(story: GithubStory, given: str) -> None:
    """Anything else is a mistake, and strict is not silently off; nor can what is given say a command."""
    ran = story.checked_out().run_action("publish", strict=given, allow_unsigned="true")
    assert not ran.is_success
    shown = given.replace("\n", " ").replace("\r", " ")
    assert f"::error::input strict: expected true or false, got '{shown}'\n" in ran.log


@pytest.mark.parametrize("name", ["publish", "gc"])
def test_what_is_missing_is_named(story: GithubStory, name: str) -> None:
    """Without setup before it, or without Nix where that is needed, one line tells."""
    machine = story.machine()
    machine.restrict_path()
    machine.run_action(name).check_failure(
        "::error::nixcache-oci is not on PATH: use the action workflows/setup"
    )
    machine.record()
    assert ("::error::Nix is not on PATH" in machine.run_action(name).log) is (name == "publish")


# Of each action: inputs, and the arguments and the environment that the program is given for them.
HANDED_ON: dict[str, tuple[dict[str, str], list[str], dict[str, str]]] = {
    "publish": (
        {"flake": NASTY, "attr": f"packages.*\n\n  {NASTY}\n--strict", "checks": "true", "strict": "true"}
        | {"scope": NASTY, "upstream_key_names": "a-1\nb-1", "accept_flake_config": "true"}
        | {"signing_key": "key", "system": "x86_64-linux\ni686-linux"},
        [
            *("--dry-run", "--checks", "--strict", f"--scope={NASTY}", "--attr=packages.*"),
            f"--attr={NASTY}",
            *("--attr=--strict", "--system=x86_64-linux", "--system=i686-linux"),
            *("--upstream-key-name=a-1", "--upstream-key-name=b-1"),
            "--accept-flake-config",
        ],
        {"NIXCACHE_CONFIG_DIR": NASTY, "NIX_SIGNING_KEY": "key"},
    ),
    "gc": (
        {"force": "true", "retention_days": NASTY, "scope_ttl": "2", "grace_days": "3", "public_keys": "a b"},
        ["--dry-run", "--force", f"--retention-days={NASTY}", "--scope-ttl=2", "--grace-days=3"],
        {"NIXCACHE_PUBLIC_KEYS": "a b"},
    ),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_inputs_become_arguments(story: GithubStory, name: str) -> None:
    """Each reaches the program, whatever is in it, and a key reaches nothing else; gc needs no Nix."""
    given, arguments, environment = HANDED_ON[name]
    machine = story.machine()
    if name == "gc":
        machine.restrict_path("dirname")
    machine.record()
    own = {"repo": "other/name", "registry": "registry.example", "image": "image"}
    machine.run_action(name, dry_run="true", token=NASTY, **own, **given).check()
    expected = {f"NIXCACHE_{name.upper()}": value for name, value in own.items()} | {"NIXCACHE_TOKEN": NASTY}
    assert machine.call()[0] == [name, *arguments]
    assert machine.call()[1].items() >= (expected | environment).items()
    assert not list(machine.folder.rglob("pwned"))


GC_DEFAULTS = ["--retention-days=30", "--scope-ttl=90", "--grace-days=30"]


@pytest.mark.parametrize(
    ("name", "set_before", "given", "arguments"),
    [
        ("publish", {"NIXCACHE_SIGNING_KEY_FILE": "/etc/key"}, {}, []),
        ("publish", {"NIXCACHE_CONFIG_DIR": "elsewhere"}, {"allow_unsigned": "true"}, ["--allow-unsigned"]),
        # An empty input is one that is not given.
        (
            "publish",
            {},
            {"allow_unsigned": "true", "new_key": "true", "upstream_key_names": "none"},
            ["--allow-unsigned", "--new-key", "--upstream-key-name="],
        ),
        ("gc", {}, {}, GC_DEFAULTS),
        ("gc", {"NIXCACHE_IMAGE": "image", "NIXCACHE_PUBLIC_KEYS": "a"}, {}, GC_DEFAULTS),
    ],
)
def test_what_is_not_given_is_left_to_the_program(
    story: GithubStory, name: str, set_before: dict[str, str], given: dict[str, str], arguments: list[str]
) -> None:
    """Its own defaults count, and what the job's environment sets, such as a key that lies in a file."""
    machine = story.machine()
    machine.record()
    machine.environment |= set_before
    machine.run_action(name, **given).check()
    assert machine.call()[0] == [name, *arguments]
    environment = machine.call()[1]
    server = story.ghcr.server
    expected = {"NIXCACHE_REGISTRY": server.host, "NIXCACHE_REPO": REPO, "GITHUB_TOKEN": server.token}
    assert environment.items() >= (expected | set_before).items()
    assert {"NIXCACHE_IMAGE", "NIXCACHE_PUBLIC_KEYS"} & environment.keys() <= set_before.keys()


def test_the_committed_key_counts(story: GithubStory) -> None:
    """Where gc is given no key, that of public-key.txt decides between variants of a path, if it is there."""
    machine = story.machine()
    machine.record()
    (machine.workspace / "public-key.txt").write_text("a-1:AA=\n")
    machine.run_action("gc").check()
    assert machine.call()[1]["NIXCACHE_PUBLIC_KEYS"] == "a-1:AA="

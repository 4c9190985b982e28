"""Rules that hold for every file that GitHub reads; none of them needs anything to run."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.cli.starter import PLACEHOLDER_REF
from tests.support.programs import require_program
from tests.workflows.documents import (
    ACTIONS,
    EVERY_FILE,
    HERE,
    TEMPLATE_WORKFLOWS,
    TOP,
    WORKFLOWS,
    Document,
    name_of,
    read,
    steps_of,
)

EVERY_WORKFLOW = (*WORKFLOWS, *TEMPLATE_WORKFLOWS)
GC_WORKFLOWS = [path for path in EVERY_WORKFLOW if path.name == "gc-cache.yml"]
PINNED = re.compile(r"uses: ([\w-]+/[\w./-]+)@([0-9a-f]{40}) # v\d+(\.\d+)*\n")
USES = re.compile(r"uses: *(\S+)")
SCRIPTS = sorted((TOP / "workflows").rglob("*.sh"))
# Of this repository alone.
OWN_SCRIPTS = [
    path for path in sorted((TOP / "scripts").iterdir()) if path.is_file() and path.read_text()[:2] == "#!"
]
OWN_WORKFLOWS = {"test.yml", "audit.yml", "update-flake-lock.yml"}

# All that any job may do; what a job lacks, its token cannot do.
READ = {"contents": "read"}
PUBLISH = {"contents": "read", "packages": "write"}
COMMIT = {"contents": "write"}
PERMISSIONS = {
    "publish-cache.yml": {"publish": PUBLISH, "public-key": COMMIT},
    "update-and-cache.yml": {"update": COMMIT, "publish": PUBLISH},
    "gc-cache.yml": {"gc": PUBLISH},
    "test.yml": {"test": READ, "coverage": READ, "registries": READ, "macos": READ},
    "audit.yml": {"audit": READ},
    "update-flake-lock.yml": {"update": READ, "propose": {**COMMIT, "pull-requests": "write"}},
}

every_file = pytest.mark.parametrize("path", EVERY_FILE, ids=name_of)
every_workflow = pytest.mark.parametrize("path", EVERY_WORKFLOW, ids=name_of)
every_action = pytest.mark.parametrize("path", ACTIONS, ids=name_of)


def run(program: str, *arguments: str | Path) -> None:
    """Run a checker, and show what it found."""
    found = subprocess.run(
        [require_program(program), *map(str, arguments)],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def texts_of(value: object) -> Iterator[str]:
    """Give every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_of(each)


def test_which_files_there_are() -> None:
    """The other tests speak of all of them."""
    assert [path.parent.name for path in ACTIONS] == [
        *("cache", "gc", "public-key", "publish", "setup", "update"),
    ]
    assert {path.name for path in WORKFLOWS} == PERMISSIONS.keys()
    assert {path.name for path in TEMPLATE_WORKFLOWS} == PERMISSIONS.keys() - OWN_WORKFLOWS


@pytest.mark.needs("check-jsonschema")
def test_the_schemas() -> None:
    """GitHub would take them: as SchemaStore describes workflows and actions."""
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *EVERY_WORKFLOW)
    run("check-jsonschema", "--builtin-schema", "vendor.github-actions", *ACTIONS)
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")


@pytest.mark.needs("actionlint")
def test_every_name_in_a_workflow_is_there() -> None:
    """GitHub takes an output, an input or a context that is not there for an empty text."""
    run("actionlint", "-shellcheck=", "-pyflakes=", *EVERY_WORKFLOW)


@pytest.mark.needs("zizmor")
def test_nothing_that_is_known_to_be_unsafe() -> None:
    """The template is the same but for how it names the actions, whose tag moves on purpose."""
    run("zizmor", "--offline", "--no-progress", "--config", ".github/zizmor.yml", ".github", "workflows")


@pytest.mark.needs("shellcheck")
def test_the_scripts() -> None:
    """Each is sound, and is called by an action or another script."""
    run("shellcheck", "--external-sources", *SCRIPTS, *OWN_SCRIPTS)
    said = "".join(path.read_text() for path in (*ACTIONS, *SCRIPTS, *TOP.glob("workflows/*/*.js")))
    assert [path.name for path in SCRIPTS if not re.search(rf'[/"]{path.name}"', said)] == []


@every_file
def test_nothing_is_pasted_into_a_script(path: Path) -> None:
    """What an expression says could end a word, or a line, of a shell; in a variable it cannot."""
    for step in steps_of(read(path)):
        assert "${{" not in step.get("run", "")
        assert "working-directory" not in step


@every_file
def test_who_is_trusted(path: Path) -> None:
    """Other people's actions are named by a commit, which cannot move, and beside it its version."""
    text = path.read_text()
    pinned = {f"{name}@{commit}" for name, commit, _ in PINNED.findall(text)}
    own = ("./workflows/", f"{HERE}workflows/")
    assert {name for name in USES.findall(text) if not name.startswith(own)} == pinned


def test_one_commit_of_each() -> None:
    """What is updated in one file is updated in all."""
    found = {(name, commit) for path in EVERY_FILE for name, commit, _ in PINNED.findall(path.read_text())}
    assert found
    assert len(found) == len(dict(found))


@every_workflow
def test_permissions(path: Path) -> None:
    """Nothing by default; only what commits may write to the repository, and it can publish nothing."""
    workflow = read(path)
    assert workflow["permissions"] == {}
    jobs = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    assert jobs == PERMISSIONS[path.name]


@every_workflow
def test_when_it_runs(path: Path) -> None:
    """A pull request, which anybody can open, starts nothing that may write or knows a secret."""
    workflow = read(path)
    allowed = {"push", "schedule", "workflow_dispatch"}
    if path.name in OWN_WORKFLOWS:
        assert not [text for text in texts_of(workflow) if "secrets." in text]
    if path.name == "test.yml":
        allowed.add("pull_request")
    assert set(workflow["on"]) <= allowed


@pytest.mark.parametrize(
    "path", [path for path in EVERY_WORKFLOW if path.name == "gc-cache.yml"], ids=name_of
)
def test_gc_runs_daily(path: Path) -> None:
    """What a day's publishes leave behind is marked the next night: each mark is served for a month."""
    (schedule,) = read(path)["on"]["schedule"]
    minute, hour, *every = schedule["cron"].split()
    assert minute.isdecimal()
    assert hour.isdecimal()
    assert every == ["*"] * 3


@every_workflow
def test_it_ends(path: Path) -> None:
    """Each job has a limit, below GitHub's own of six hours."""
    for job in read(path)["jobs"].values():
        assert 0 < job["timeout-minutes"] < 360


@every_workflow
def test_what_writes_is_not_cancelled(path: Path) -> None:
    """One at a time of its kind; and of what changes the cache or the repository, none is stopped midway."""
    workflow = read(path)
    concurrency = workflow["concurrency"]
    assert concurrency["group"].startswith(workflow["name"])
    assert concurrency["cancel-in-progress"] is (path.name == "test.yml")
    for job in workflow["jobs"].values():
        assert job.get("strategy", {}).get("fail-fast") in (None, False)


@every_workflow
def test_secrets_and_tokens(path: Path) -> None:
    """The secret key goes to the step that signs, and nowhere else; no checkout leaves a token behind."""
    for step in steps_of(read(path)):
        given = dict(step.get("with", {}))
        if step.get("uses", "").startswith("actions/checkout@"):
            assert given["persist-credentials"] is False
        if re.search(r"workflows/(cache|publish)(@|$)", step.get("uses", "")):
            assert given.pop("signing-key") == "${{ secrets.NIX_SIGNING_KEY }}"
        assert not [text for text in texts_of({**step, "with": given}) if "secrets." in text]


@pytest.mark.parametrize("path", TEMPLATE_WORKFLOWS, ids=name_of)
def test_the_template_is_what_runs_here(path: Path) -> None:
    """Said once: it differs by nothing but where the actions come from."""
    here = (TOP / ".github/workflows" / path.name).read_text()
    assert path.read_text() == re.sub(
        r"uses: \./workflows/(\S+)", rf"uses: {HERE}workflows/\1@{PLACEHOLDER_REF}", here
    )


def test_every_system_has_a_machine() -> None:
    """What the starter builds for is built by both workflows."""
    kinds = {
        "x86_64-linux": "ubuntu-24.04",
        "aarch64-linux": "ubuntu-24.04-arm",
        "aarch64-darwin": "macos-15",
    }
    starter = (TOP / "config/flake.nix").read_text()
    systems = re.findall(r'"(\w+-(?:linux|darwin))"', starter)
    for name in ("publish-cache.yml", "update-and-cache.yml"):
        job = read(TOP / ".github/workflows" / name)["jobs"]["publish"]
        assert job["strategy"]["matrix"] == {"os": [kinds[system] for system in systems]}


@every_action
def test_every_input_counts(path: Path) -> None:
    """Each is handed to a script, which uses it, is described, stands in the README; no other is named."""
    action = read(path)
    readme = (TOP / "workflows/README.md").read_text()
    for step in steps_of(action):
        for variable in step.get("env", {}):
            if variable.startswith(("INPUT_", "HEAD_")):
                assert re.search(rf"\$\{{?{variable}\b", scripts_of(path))
    if action["runs"]["using"] == "composite":
        handed_on = " ".join(texts_of([step.get("env", {}) for step in steps_of(action)]))
        named = {name.upper() for name in re.findall(r"\binputs\.([\w-]+)", handed_on)}
    else:  # the runner itself hands all of them on
        own = "".join(each.read_text() for each in path.parent.iterdir())
        named = {name.replace("_", "-") for name in re.findall(r"\bINPUT_([A-Z_-]+[A-Z])\b", own)}
    assert named == {name.upper() for name in action.get("inputs", {})}
    for name, described in action.get("inputs", {}).items():
        assert described["description"]
        assert f"| `{name}` |" in readme
    for name in action.get("outputs", {}):
        assert f"`{name}`" in readme


def scripts_of(path: Path) -> str:
    """Read what an action's steps may run."""
    return "".join(each.read_text() for each in SCRIPTS if each.parent.name in {path.parent.name, "shell"})


def test_a_document_is_read_as_github_reads_it(tmp_path: Path) -> None:
    """``on`` is a text, and no truth value; what is there twice is a mistake."""
    path = tmp_path / "workflow.yml"
    path.write_text("on: push\nname: 'yes'\n")
    document: Document = read(path)
    assert document == {"on": "push", "name": "yes"}

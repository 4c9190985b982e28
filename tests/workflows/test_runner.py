"""The runner: as GitHub's where our files rely on it, and stricter where a mistake would pass unseen."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.workflows.runner import Event, Job, Permitted, RunnerError, parse_commands
from tests.workflows.workflow import permissions_of

HEAD = "name: test\ninputs:\n  word: {default: '${{ github.repository }}'}\n"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    environment = {"PATH": "/usr/bin:/bin", "GITHUB_REPOSITORY": "o/n"}
    return Job(tmp_path / "job", environment, Event(), Permitted({}, "token"), {"a/b": play}, "1")


def play(_job: Job, given: Mapping[str, str]) -> Mapping[str, str]:
    return {"given": "|".join(f"{name}={value}" for name, value in given.items())}


def write_action(folder: Path, steps: str, outputs: str = "{}") -> Path:
    """Write an action with one input; its steps are those of a flow of YAML."""
    (folder / "action.yml").write_text(
        f"{HEAD}outputs: {outputs}\nruns: {{using: composite, steps: [{steps}]}}\n"
    )
    return folder


def test_steps_hand_on(job: Job, tmp_path: Path) -> None:
    """Variables, PATH and outputs of one step are there in the next; texts are put into `with` and `env`."""
    (tmp_path / "bin").mkdir()
    action = write_action(
        tmp_path,
        f"""
        {{id: one, shell: bash, env: {{WORD: "${{{{ inputs.word }}}}"}}, run: '
          echo "out=$WORD" >> $GITHUB_OUTPUT; echo A=1 >> $GITHUB_ENV; echo {tmp_path}/bin >> $GITHUB_PATH'}},
        {{id: two, uses: a/b@x, with: {{x: "${{{{ steps.one.outputs.out }}}}", yes: true, n: 3}}}},
        {{shell: bash, run: 'echo "$A $PATH $GITHUB_ACTION_PATH"; echo shown >> $GITHUB_STEP_SUMMARY'}}""",
        "{out: {value: '${{ steps.two.outputs.given }}'}}",
    )
    ran = job.run_action(action, {}).check()
    assert ran.outputs == {"out": "x=o/n|yes=true|n=3"}
    assert ran.log == f"1 {tmp_path}/bin:/usr/bin:/bin {tmp_path}\n"
    assert ran.summary == "shown\n"


def test_after_a_failure(job: Job, tmp_path: Path) -> None:
    """A step ends at its first failing command; later ones run only if they say so; outputs count."""
    action = write_action(
        tmp_path,
        """{id: one, shell: bash, run: 'echo x=1 >> $GITHUB_OUTPUT; false | true; echo not reached'},
        {shell: bash, run: 'echo not run'}, {if: always(), shell: bash, run: 'echo run'}""",
        "{x: {value: '${{ steps.one.outputs.x }}'}}",
    )
    ran = job.run_action(action, {})
    assert (ran.outcome, ran.outputs, ran.log) == ("failure", {"x": "1"}, "run\n")


@pytest.mark.parametrize(
    ("steps", "given"),
    [
        ("{shell: bash, run: 'true'}", {"wrod": "x"}),
        ("{uses: c/d@x}", {}),
        ("{uses: a/b@x, run: 'true'}", {}),
        ("{shell: bash, run: 'true', continue-on-error: true}", {}),
        ("{shell: bash, run: 'echo nothing >> $GITHUB_OUTPUT'}", {}),
    ],
)
def test_mistakes(job: Job, tmp_path: Path, steps: str, given: dict[str, str]) -> None:
    """An unknown input, key or action, and an output that is none, are errors."""
    with pytest.raises(RunnerError):
        job.run_action(write_action(tmp_path, steps), given)


def test_a_missing_input(job: Job, tmp_path: Path) -> None:
    """GitHub itself does not insist on a required one."""
    (tmp_path / "action.yml").write_text("name: x\ninputs: {a: {required: true}}\nruns: {steps: []}\n")
    with pytest.raises(RunnerError):
        job.run_action(tmp_path, {})


def test_commands() -> None:
    """A value may have an equals sign, and no line may be without."""
    assert parse_commands("a=b=c\n") == {"a": "b=c"}
    with pytest.raises(RunnerError):
        parse_commands("a<<END\nb\nEND\n")


def test_permissions_are_told(tmp_path: Path) -> None:
    """Without a word, a repository's default counts, and that may be everything."""
    path = tmp_path / "workflow.yml"
    path.write_text("permissions: {contents: read}\njobs: {a: {}, b: {permissions: write-all}}\n")
    assert permissions_of(path, "a") == {"contents": "read"}
    with pytest.raises(RunnerError):
        permissions_of(path, "b")

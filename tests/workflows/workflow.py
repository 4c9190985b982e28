"""Runs one job of a workflow; the order of jobs is the test's.

Real: what the file says of steps, conditions and outputs, and which permissions the job has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.workflows.documents import read
from tests.workflows.expression import Payload, Scope, Value
from tests.workflows.runner import Job, Result, RunnerError, Steps

_STEP_KEYS: Final = {"name", "id", "if", "run", "uses", "with", "env"}


def run_job(
    job: Job,
    path: Path,
    name: str,
    *,
    contexts: Mapping[str, Value],
    needs: Mapping[str, Result],
) -> Result:
    """Run one job of a workflow.

    Args:
        job: the machine.
        path: of the workflow.
        name: of the job.
        contexts: what expressions may name beside github, needs and steps: secrets, matrix, inputs.
        needs: the jobs before it; exactly those that it names.

    Raises:
        RunnerError: the file is not as it has to be.
    """
    document = read(path)["jobs"][name]
    if set(document.get("needs", "").split()) != needs.keys():
        raise RunnerError(f"{name}: needs {document.get('needs')}, and not {sorted(needs)}")
    told: dict[str, Value] = {
        each: {"result": one.outcome, "outputs": Payload(one.outputs)} for each, one in needs.items()
    }
    all_contexts: dict[str, Value] = {**contexts, "needs": told}
    before = "success" if all(one.outcome == "success" for one in needs.values()) else "failure"
    if not Scope({**all_contexts, "github": job.github()}, before).decide(document.get("if")):
        return Result("skipped", {}, "", "", job.workspace)
    steps = Steps(job, all_contexts, _STEP_KEYS)
    steps.run(document["steps"])
    return steps.result(document.get("outputs", {}))


def permissions_of(path: Path, name: str) -> Mapping[str, str]:
    """Tell what a job may do.

    Raises:
        RunnerError: nothing says so, and GitHub's default might be everything.
    """
    workflow = read(path)
    permissions = workflow["jobs"][name].get("permissions", workflow.get("permissions"))
    if not isinstance(permissions, Mapping):
        raise RunnerError(f"{path.name}: {name}: permissions are not told one by one")
    return permissions

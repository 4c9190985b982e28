"""The setup action: the program comes from the action's own checkout, and Nix where it is missing."""

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import platformdirs
import pytest

from tests.workflows.documents import TOP
from tests.workflows.github_story import GithubStory, flake
from tests.workflows.recorder import restrict_path
from tests.workflows.runner import Job

SETUP = TOP / "workflows/setup"
LOCK = SETUP / "requirements.txt"
INSTALLER = "cachix/install-nix-action"
# As pip says that it reached no index; anything else is a failure of ours.
NO_INDEX = re.compile(r"connection broken|Failed to establish|Name or service not known", re.IGNORECASE)


def packages_of(lock: str) -> dict[str, list[str]]:
    """Tell each package of a lock, with its version, and the hashes that it may have."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\S)", lock):
        name, *rest = block.splitlines()
        if not name.startswith("#"):
            found[name.removesuffix(" \\")] = re.findall(r"sha256:[0-9a-f]{64}", "\n".join(rest))
    return found


def plant(job: Job, proof: Path) -> None:
    """Put modules and programs that write a proof into the checkout, and have the job lead to them."""
    module = f"open({str(proof)!r}, 'a').write(__file__ + chr(10))\n"
    names = (
        "venv",
        "ensurepip",
        "pip",
        "setuptools",
        "sitecustomize",
        "usercustomize",
        "aiohttp",
        "nixcache_oci",
    )
    for folder in (".", "config"):
        for name in names:
            (job.workspace / folder / f"{name}.py").write_text(module)
    programs = job.workspace / "bin"
    programs.mkdir()
    # All but bash, which the runner itself looks for there.
    for name in (
        "python3",
        "python3.11",
        "pip",
        "nix",
        "nixcache-oci",
        "env",
        "rm",
        "mkdir",
        "cp",
        "cat",
        "od",
        "dirname",
    ):
        (programs / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{proof}\n')
        (programs / name).chmod(0o755)
    settings = [job.workspace / path for path in ("pip.conf", ".pip/pip.conf", "config/pip/pip.conf")]
    for path in settings:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[global]\npython = {programs}/python3\ntarget = {job.workspace}\n")
    job.environment |= {
        "PATH": f"{programs}:bin:.::{job.environment['PATH']}",
        "PYTHONPATH": f"{job.workspace}:.",
        "PYTHONSTARTUP": f"{job.workspace}/sitecustomize.py",
        "PIP_CONFIG_FILE": f"{job.workspace}/pip.conf",
        "PIP_PYTHON": f"{programs}/python3",
        "PIP_TARGET": str(job.workspace),
        "XDG_CONFIG_HOME": f"{job.workspace}/config",
        "HOME": str(job.workspace),
        "BASH_ENV": f"{programs}/env",
    }


@pytest.mark.needs("nix", "git")
def test_the_program_is_installed_and_publishes(story: GithubStory, tmp_path: Path) -> None:
    """By hash, on the PATH of later steps only as itself; Nix is there, and not installed again.

    Nothing of the checkout runs, then or when it publishes, whatever lies there and wherever the job leads.
    """
    job = story.job(permissions={"packages": "write"})
    # pip's usual cache, so that what it has is not fetched by every run of this test.
    job.environment["PIP_CACHE_DIR"] = str(platformdirs.user_cache_path("pip", appauthor=False))
    job.environment |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    story.commit_flake(flake('one = mk "one" "echo ${dep.text} > $out";', story.write_input("text")))
    story.check_out(job, "refs/heads/main")
    proof = tmp_path / "proof"
    plant(job, proof)
    ran = job.run_action(SETUP, {})
    assert not proof.exists(), proof.read_text()
    if NO_INDEX.search(ran.log) and os.environ.get("CI") != "true":
        pytest.skip("no package index can be reached")
    ran.check()
    version = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    assert ran.outputs == {"version": version}
    assert "nix (Nix)" in ran.log
    added = job.environment["PATH"].split(os.pathsep)[0]
    assert [path.name for path in Path(added).iterdir()] == ["nixcache-oci"]
    # What `init` writes is installed with it, what begins with a dot as well.
    subprocess.run([Path(added, "nixcache-oci"), "init", tmp_path / "fresh"], check=True, capture_output=True)
    written = {
        str(path.relative_to(tmp_path / "fresh")) for path in tmp_path.glob("fresh/**/*") if path.is_file()
    }
    assert written >= {".gitignore", ".github/workflows/publish-cache.yml", "config/flake.nix"}
    job.run_action(TOP / "workflows/publish", {"signing-key": story.key.render()}).check()
    assert len(story.records()) == 1
    dry = job.run_action(TOP / "workflows/gc", {"dry-run": "true"}).check()
    assert not proof.exists(), proof.read_text()
    assert "1 path pinned or a root" in dry.log


@pytest.mark.parametrize(("given", "installed"), [("true", 1), ("false", 0)])
def test_nix_is_installed_where_it_is_missing(story: GithubStory, given: str, installed: int) -> None:
    """By somebody else's action, and not where it is not needed; without Python, one line tells."""
    calls: list[Mapping[str, str]] = []

    def install(_job: Job, inputs: Mapping[str, str]) -> Mapping[str, str]:
        calls.append(inputs)
        return {}

    story.players[INSTALLER] = install
    job = story.job()
    restrict_path(job, "bash", "env", "mkdir", "rm", "grep")
    ran = job.run_action(SETUP, {"nix": given})
    assert ran.outcome == "failure"
    assert "::error::no Python of 3.11 or newer" in ran.log
    assert len(calls) == installed


@pytest.mark.parametrize(("line", "mode"), [("access-tokens = github.com=x", 0o600), ("cores = 1", 0o644)])
def test_builds_cannot_read_what_the_installer_wrote(story: GithubStory, line: str, mode: int) -> None:
    """It puts the job's token into nix.conf for everybody, and builds may run without a sandbox."""
    job = story.job()
    settings = job.temp / "nix.conf"

    def install(_job: Job, _inputs: Mapping[str, str]) -> Mapping[str, str]:
        settings.write_text(f"max-jobs = auto\n{line}\n")
        settings.chmod(0o644)
        return {}

    story.players[INSTALLER] = install
    job.environment["NIX_CONF_DIR"] = str(job.temp)
    programs = ("bash", "env", "mkdir", "rm", "grep", "id", "chown", "chmod", "od", "tr", "sed")
    restrict_path(job, *programs)
    assert "::error::no Python of 3.11 or newer" in job.run_action(SETUP, {}).log
    assert settings.stat().st_mode & 0o777 == mode


def test_the_locks_agree() -> None:
    """What a runner installs is what was tested: the same versions and hashes, all that the program needs."""
    of_setup, of_tests = packages_of(LOCK.read_text()), packages_of((TOP / "requirements.txt").read_text())
    assert of_setup.items() <= of_tests.items()
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    names = {re.split(r"[=;\s]", name)[0] for name in of_setup}
    assert {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in wanted} <= names
    assert not names & {"mypy", "pytest", "ruff"}

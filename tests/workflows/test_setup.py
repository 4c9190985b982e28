"""The setup action: the program comes from the action's own checkout, and Nix where it is missing."""

import os
import re
import shutil
import tomllib
from pathlib import Path

import platformdirs
import pytest

from tests.workflows.documents import TOP
from tests.workflows.github_story import INSTALLER, GithubStory
from tests.workflows.machine import Machine, use

SETUP = TOP / "workflows/setup"
NO_PYTHON = "::error::no Python of 3.11 or newer"
# As pip says that it reached no index; anything else is a failure of ours.
NO_INDEX = re.compile(r"connection broken|Failed to establish|Name or service not known", re.IGNORECASE)


@pytest.fixture
def story(story: GithubStory) -> GithubStory:
    """Give a repository whose workflows use the real action."""
    for name in (*SETUP.iterdir(), *(TOP / name for name in ("LICENSE", "README.md", "pyproject.toml"))):
        target = story.own_actions / name.relative_to(TOP)
        shutil.copyfile(name, target)
    shutil.copytree(
        TOP / "nixcache_oci",
        story.own_actions / "nixcache_oci",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return story


def plant(machine: Machine, proof: Path) -> None:
    """Put modules and programs that write a proof into the checkout, and have the job lead to them."""
    module = f"open({str(proof)!r}, 'a').write(__file__ + chr(10))\n"
    modules = "venv ensurepip pip setuptools sitecustomize usercustomize aiohttp nixcache_oci"
    for folder in (".", "config"):
        for name in modules.split():
            (machine.workspace / folder / f"{name}.py").write_text(module)
    programs = machine.workspace / "bin"
    programs.mkdir()
    # All but bash, which the runner itself looks for there.
    for name in [
        *("python3", "python3.11", "pip", "nix", "nixcache-oci", "env", "rm", "mkdir", "cp", "cat", "od"),
        "dirname",
    ]:
        (programs / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{proof}\n')
        (programs / name).chmod(0o755)
    for file in ("pip.conf", ".pip/pip.conf", "config/pip/pip.conf"):
        path = machine.workspace / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[global]\npython = {programs}/python3\ntarget = {machine.workspace}\n")
    machine.environment |= {
        "PATH": f"{programs}:bin:.::{machine.environment['PATH']}",
        "PYTHONPATH": f"{machine.workspace}:.",
        "PYTHONSTARTUP": f"{machine.workspace}/sitecustomize.py",
        "PIP_CONFIG_FILE": f"{machine.workspace}/pip.conf",
        "PIP_PYTHON": f"{programs}/python3",
        "PIP_TARGET": str(machine.workspace),
        "XDG_CONFIG_HOME": f"{machine.workspace}/config",
        "HOME": str(machine.workspace),
        "BASH_ENV": f"{programs}/env",
    }


@pytest.mark.needs("nix", "git", "act")
def test_the_program_is_installed_and_publishes(story: GithubStory, tmp_path: Path) -> None:
    """By hash, on the PATH of later steps only as itself; Nix is there, and not installed again.

    Nothing of the checkout runs, then or when it publishes, whatever lies there and wherever the job leads.
    """
    story.commit_flake()
    machine = story.checked_out()
    # pip's usual cache, so that what it has is not fetched by every run of this test.
    machine.environment["PIP_CACHE_DIR"] = str(platformdirs.user_cache_path("pip", appauthor=False))
    machine.environment |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    proof, listed = tmp_path / "proof", tmp_path / "listed"
    plant(machine, proof)
    # What `init` writes is installed with it, what begins with a dot as well.
    look = f'f=${{PATH%%:*}}; echo "$f"/* >{listed}; "$f/nixcache-oci" init {tmp_path}/fresh'
    ran = machine.run_steps(
        {"id": "action", **use("setup", {})},
        {"run": look, "env": {"BASH_ENV": ""}},
        use("publish", {"signing-key": story.key.render()}),
        use("gc", {"dry-run": "true"}),
    )
    assert not proof.exists(), proof.read_text()
    if NO_INDEX.search(ran.log) and os.environ.get("CI") != "true":
        pytest.skip("no package index can be reached")
    ran.check()
    version = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    assert ran.outputs == {"version": version}
    assert "nix (Nix)" in ran.log
    assert [Path(path).name for path in listed.read_text().split()] == ["nixcache-oci"]
    written = {str(path.relative_to(tmp_path / "fresh")) for path in tmp_path.glob("fresh/**/*")}
    assert written >= {".gitignore", ".github/workflows/publish-cache.yml", "config/flake.nix"}
    assert len(story.records()) == 1
    assert "1 root or pin" in ran.log


@pytest.mark.needs("act", "git")
@pytest.mark.parametrize(("given", "installed"), [("true", True), ("false", False)])
def test_nix_is_installed_where_it_is_missing(story: GithubStory, given: str, installed: bool) -> None:
    """By somebody else's action, and not where it is not needed; without Python, one line tells."""
    machine = story.machine()
    machine.restrict_path("env", "mkdir", "rm", "grep")
    ran = machine.run_action("setup", nix=given).check_failure(NO_PYTHON)
    assert ("Nix is installed" in ran.log) is installed


@pytest.mark.needs("act", "git")
@pytest.mark.parametrize(("line", "mode"), [("access-tokens = github.com=x", 0o600), ("cores = 1", 0o644)])
def test_builds_cannot_read_what_the_installer_wrote(story: GithubStory, line: str, mode: int) -> None:
    """It puts the job's token into nix.conf for everybody, and builds may run without a sandbox."""
    machine = story.machine()
    settings = machine.folder / "nix.conf"
    story.stub(INSTALLER, f'printf "max-jobs = auto\\n{line}\\n" >{settings}; chmod 644 {settings}')
    machine.environment["NIX_CONF_DIR"] = str(machine.folder)
    machine.restrict_path("env", "mkdir", "rm", "grep", "id", "chown", "chmod", "od", "tr", "sed")
    assert NO_PYTHON in machine.run_action("setup").log
    assert settings.stat().st_mode & 0o777 == mode

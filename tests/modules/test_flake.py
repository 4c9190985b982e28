"""The flakes: this project's, and the starter that becomes somebody's cache. nixpkgs is the stand-in."""

import ast
import json
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.nix import NixRun, NixSandbox
from tests.support.nix_modules import STANDIN, TOP

pytestmark = pytest.mark.needs("nix")

LINUX = ["aarch64-linux", "x86_64-linux"]
DARWIN = ["aarch64-darwin", "x86_64-darwin"]
STARTER = TOP / "config"
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
NAMED = f"nixcache-oci-{PROJECT['version']}"
TEMPLATE = TOP / "nixcache_oci/starter"
# What the flake is evaluated from; a checkout has more, such as virtual environments.
PARTS = [
    *("flake.nix", "nixos-module.nix", "nix", "config", "nixcache_oci", "pyproject.toml", "README.md"),
    "LICENSE",
]

WITH_STANDIN = ["--override-input", "nixpkgs", f"path:{STANDIN}"]


@pytest.fixture
def nix(tmp_path: Path) -> NixSandbox:
    """Nix on an ordinary store: in a chroot store, it takes no path of a flake for one of the store."""
    return NixSandbox(tmp_path / "nix", store_dir=tmp_path / "nix/store")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for part in PARTS:
        source = TOP / part
        if source.is_dir():
            shutil.copytree(source, folder / part)
        else:
            shutil.copy(source, folder / part)
    return folder


def run(nix: NixSandbox, *arguments: str) -> NixRun:
    return nix.run("nix", *arguments, *WITH_STANDIN, "--no-write-lock-file").check()


def evaluate(nix: NixSandbox, flake: Path, attribute: str, apply: str = "value: value") -> Any:  # noqa: ANN401 -- JSON
    return json.loads(run(nix, "eval", "--json", f"path:{flake}#{attribute}", "--apply", apply).stdout)


def names_by_system(output: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[str, ...]]:
    return {system: tuple(sorted(made)) for system, made in output.items()}


def test_the_outputs(nix: NixSandbox, checkout: Path) -> None:
    """What README and other flakes name is there, for every system."""
    shown = json.loads(run(nix, "flake", "show", "--json", f"path:{checkout}").stdout)
    assert shown.keys() == {
        *("apps", "checks", "darwinModules", "devShells", "homeModules", "nixosModules", "overlays"),
        *("packages", "templates"),
    }
    for output, names in {
        "packages": ("default", "nixcache-oci"),
        "apps": ("cache-proxy", "default"),
        "devShells": ("default",),
    }.items():
        assert names_by_system(shown[output]) == dict.fromkeys(LINUX + DARWIN, names)
    assert names_by_system(shown["checks"]) == {
        **dict.fromkeys(DARWIN, ("package", "tests")),
        **dict.fromkeys(LINUX, ("package", "tests", "units", "vm")),
    }


def test_nix_finds_nothing_wrong(nix: NixSandbox, checkout: Path) -> None:
    """Every output is of the kind that Nix wants: apps, checks, modules, overlay, template."""
    said = run(nix, "flake", "check", "--no-build", f"path:{checkout}").stderr
    assert [
        line for line in said.splitlines() if "unknown flake output" not in line and "warning" in line
    ] == [f"warning: not writing modified lock file of flake 'path:{checkout}':"]


def test_the_package(nix: NixSandbox, checkout: Path) -> None:
    """It is made of what pyproject.toml says, and of the sources only: a new test does not build it anew."""
    (checkout / "nixcache_oci/__pycache__").mkdir(exist_ok=True)
    (checkout / "nixcache_oci/__pycache__/x.pyc").write_text("")
    package = evaluate(
        nix,
        checkout,
        "packages.x86_64-linux.default",
        'package: { inherit (package) name inputs tools meta; src = "${package.src}"; }',
    )
    assert package["name"] == NAMED
    assert package["meta"]["mainProgram"] == "nixcache-oci"
    names = [re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in PROJECT["dependencies"]]
    assert package["inputs"] == [f"python3-{name}" for name in names]
    # What makes completions and manual page is there while it is built, and not with the program.
    assert package["tools"] == [
        *(f"python3-{name}" for name in ("setuptools", "argparse-manpage", "shtab")),
        "installShellFiles",
    ]
    source = nix.physical(package["src"])
    assert sorted(path.name for path in source.iterdir()) == [
        "LICENSE",
        "README.md",
        "nixcache_oci",
        "pyproject.toml",
    ]
    assert _modules(source / "nixcache_oci") == _modules(TOP / "nixcache_oci")
    assert not list(source.rglob("__pycache__"))


def _modules(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.py")}


def test_the_apps(nix: NixSandbox, checkout: Path) -> None:
    """`nix run .#cache-proxy` serves, with further flags passed on; `nix run .` is the whole program."""
    programs = evaluate(nix, checkout, "apps.x86_64-linux", "builtins.mapAttrs (_: app: app.program)")
    assert programs["default"].endswith(f"-{NAMED}/bin/nixcache-oci")
    script = nix.physical(programs["cache-proxy"]).read_text()
    assert script == f'exec {programs["default"]} proxy "$@"'


def test_the_overlay(nix: NixSandbox, checkout: Path) -> None:
    """With the overlay, the modules take the package from it."""
    lib = f"(import {STANDIN}/lib.nix)"
    pkgs = f'(import {STANDIN}/pkgs.nix {{ lib = {lib}; system = "x86_64-linux"; }})'
    named = run(
        nix,
        *("eval", "--impure", "--json", f"path:{checkout}#overlays.default", "--apply"),
        f"overlay: (overlay {pkgs} {pkgs}).nixcache-oci.name",
    )
    assert json.loads(named.stdout) == NAMED


def test_the_virtual_machines(nix: NixSandbox, checkout: Path) -> None:
    """Their module holds together (the stand-in evaluates every machine), and their script is Python."""
    script = evaluate(nix, checkout, "checks.x86_64-linux.vm", "test: test.testScript")
    assert _called(ast.parse(script)) >= {"start_all", "build", "publish", "narinfo"}


def _called(tree: ast.AST) -> set[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {called.id for called in calls if isinstance(called, ast.Name)}


def test_the_lock_is_the_flakes_own(nix: NixSandbox, checkout: Path) -> None:
    """Nix takes flake.lock as it is: it resolves every input of flake.nix, and nothing is looked up anew."""
    (checkout / "flake.lock").write_bytes((TOP / "flake.lock").read_bytes())
    ran = nix.run("nix", "flake", "metadata", "--json", "--no-update-lock-file", f"path:{checkout}").check()
    assert json.loads(ran.stdout)["locks"] == json.loads((TOP / "flake.lock").read_text())
    nix.run("nix", "flake", "lock", f"path:{checkout}").check()
    assert (checkout / "flake.lock").read_bytes() == (TOP / "flake.lock").read_bytes()


@pytest.mark.parametrize("flake", [STARTER, TEMPLATE / "config"])
def test_the_starter(nix: NixSandbox, flake: Path, tmp_path: Path) -> None:
    """It has something to publish for each system right away, and works where it was copied to."""
    copied = tmp_path / "config"
    shutil.copytree(flake, copied)
    shown = json.loads(run(nix, "flake", "show", "--json", f"path:{copied}").stdout)
    for output in ("packages", "devShells"):
        assert names_by_system(shown[output]) == dict.fromkeys([*LINUX, "aarch64-darwin"], ("default",))
    run(nix, "flake", "check", "--no-build", f"path:{copied}")


def test_the_starter_is_said_once() -> None:
    """A template has to be in a folder of its own; what it holds is the starter that README explains."""
    assert (TEMPLATE / "config/flake.nix").read_text() == (STARTER / "flake.nix").read_text()


def test_the_template(nix: NixSandbox, checkout: Path, tmp_path: Path) -> None:
    """`nix flake init` lays down a repository, for which it needs nothing but this flake and its lock."""
    nix.run("nix", "flake", "lock", f"path:{checkout}", *WITH_STANDIN).check()
    laid = tmp_path / "repository"
    nix.run("nix", "flake", "new", str(laid), "-t", f"path:{checkout}").check()
    assert {str(path.relative_to(laid)) for path in laid.rglob("*") if path.is_file()} == {
        *(".github/workflows/gc-cache.yml", ".github/workflows/publish-cache.yml"),
        *(".github/workflows/update-and-cache.yml", ".gitignore", "README.md", "config/flake.nix"),
    }
    assert (laid / "config/flake.nix").read_text() == (STARTER / "flake.nix").read_text()

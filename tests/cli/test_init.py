"""A repository becomes a cache: everything is written or nothing is, and never over what is there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.cli.starter import (
    PLACEHOLDER,
    PLACEHOLDER_REF,
    Choices,
    StarterFile,
    compare,
    write,
)
from nixcache_oci.errors import Error
from tests.support.nix import NixSandbox
from tests.support.nix_modules import STANDIN

pytestmark = pytest.mark.needs("git")

TOP = Path(__file__).parent.parent.parent
WRITTEN = {
    *(".github/workflows/gc-cache.yml", ".github/workflows/publish-cache.yml"),
    *(".github/workflows/update-and-cache.yml", ".gitignore", "config/flake.nix"),
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make an empty git repository."""
    folder = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True, timeout=60)
    return folder


def _read(folder: Path) -> dict[str, str]:
    paths = [
        path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts
    ]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_what_is_written(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The workflows and the flake, and each next step named; a second run changes nothing and says so."""
    assert main(["init", str(repository)]) == 0
    first = _read(repository)
    assert set(first) == WRITTEN
    assert first["config/flake.nix"] == (TOP / "config/flake.nix").read_text()
    said = capsys.readouterr()
    assert "NIX_SIGNING_KEY" in said.out
    assert "*.sec" not in said.out
    assert said.err == ""
    assert main(["init", str(repository)]) == 0
    assert _read(repository) == first
    assert "wrote" not in capsys.readouterr().out


# Paths of files end like it, too, and have more before it.
_OUR_REPOSITORY = re.compile(r"(?:(?<![\w./$-])|(?<=github\.com/))[\w.-]+/nixcache-oci\b")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("ref", ["v2", COMMIT])
def test_whose_actions(repository: Path, capsys: pytest.CaptureFixture[str], ref: str) -> None:
    """Every step that uses our actions names the repository and ref asked for, and no other step changes."""
    assert main(["init", str(repository), "--actions", f"someone/their-cache@{ref}"]) == 0
    for name, text in _read(repository).items():
        assert PLACEHOLDER not in text, name
        assert PLACEHOLDER_REF not in text, name
    publish = (repository / ".github/workflows/publish-cache.yml").read_text()
    assert f"uses: someone/their-cache/workflows/publish@{ref}\n" in publish
    assert "uses: actions/checkout@de0f" in publish
    said = capsys.readouterr().out
    assert f"https://github.com/someone/their-cache/tree/{ref}" in said
    assert ("can move" in said) == (ref != COMMIT)


def test_actions_of_nobody(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever owns the named repository runs code beside the signing key: unasked, nobody at GitHub can.

    An account's name is letters, digits and single hyphens, at most 39. That it must be replaced is said.
    """
    assert main(["init", str(repository)]) == 0
    owners = set()
    for path in (repository / ".github/workflows").iterdir():
        owners |= set(re.findall(r"uses: ([^/\s]+)/", path.read_text()))
    (owner,) = owners - {"actions"}
    assert re.fullmatch(r"(?=.{1,39}\Z)[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:_[A-Za-z0-9]+)?", owner) is None
    said = capsys.readouterr().out
    assert f"replace {PLACEHOLDER} with" in said
    assert f"{PLACEHOLDER_REF} with a commit" in said


def test_no_text_names_an_owner_who_could_be_anybody() -> None:
    """What is there to be copied names no account for this project: anybody may have registered it."""
    texts = [TOP / "README.md", TOP / "CHANGELOG.md", TOP / "flake.nix", TOP / "nixos-module.nix"]
    for folder in ("docs", "workflows", "config", "nix", "nixcache_oci", ".github"):
        texts += [
            path for path in (TOP / folder).rglob("*") if path.suffix in {".md", ".yml", ".nix", ".sh", ".py"}
        ]
    assert len(texts) > 100
    named = {
        (str(path.relative_to(TOP)), found)
        for path in texts
        for found in _OUR_REPOSITORY.findall(path.read_text())
    }
    assert {one for one in named if one[1] not in {PLACEHOLDER, "bin/nixcache-oci"}} == set()


@pytest.mark.parametrize(
    "actions",
    [
        *("", "nixcache-oci", "a/b@", "a/b@v1 # x", "a/b\nrun: x", PLACEHOLDER, f"{PLACEHOLDER}@v1"),
        *("a/..", "a/.@v1", "a/..@v1", "a/b@../..", "a/b@-x", "a/b@v1..v2", "a/b@v1/", "a/b@/v1", "a/b@v//1"),
        *("a/b@.v1", "a/b@v/.1", "a/b@v1.", "a/b@v1.lock", "a/b@v1.lock/x"),
    ],
)
def test_actions_that_are_none(repository: Path, actions: str) -> None:
    """What would not be a reference in the workflow is wrong usage, and nothing is written."""
    assert main(["init", str(repository), "--actions", actions]) == 2
    assert _read(repository) == {}


@pytest.mark.parametrize("actions", ["a/b.c@release/v1.2", "a/.github@v1", "A-b/c@v1.locked", "a/b@x-/_y"])
def test_odd_actions_that_may_be_some(repository: Path, actions: str) -> None:
    """What GitHub and git take for a name is taken."""
    assert main(["init", str(repository), "--actions", actions]) == 0
    assert f"uses: {actions.replace('@', '/workflows/setup@')}\n" in "".join(_read(repository).values())


def test_actions_are_filled_in_later(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was left to fill in, a later run fills in as the step says; a flake of one's own is left."""
    assert main(["init", str(repository), "--actions", "someone/their-cache"]) == 0
    assert "--actions someone/their-cache@COMMIT" in capsys.readouterr().out
    publish = repository / ".github/workflows/publish-cache.yml"
    assert f"uses: someone/their-cache/workflows/publish@{PLACEHOLDER_REF}\n" in publish.read_text()
    (repository / "config/flake.nix").write_text("mine")
    assert main(["init", str(repository), "--actions", f"someone/their-cache@{COMMIT}"]) == 0
    assert f"uses: someone/their-cache/workflows/publish@{COMMIT}\n" in publish.read_text()
    assert (repository / "config/flake.nix").read_text() == "mine"
    before = _read(repository)
    assert main(["init", str(repository), "--actions", f"someone/else@{COMMIT}"]) == 1
    assert _read(repository) == before


def test_nothing_is_overwritten(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file that differs keeps all others from being written, and is named."""
    (repository / "config").mkdir()
    (repository / "config/flake.nix").write_text("precious")
    assert main(["init", str(repository)]) == 1
    assert "config/flake.nix" in capsys.readouterr().err
    assert _read(repository) == {"config/flake.nix": "precious"}


def test_a_gitignore_is_left(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nearly every repository has one: it stays as it is, and what it lacks is said."""
    (repository / ".gitignore").write_text("/target\n")
    assert main(["init", str(repository)]) == 0
    assert (repository / ".gitignore").read_text() == "/target\n"
    assert "*.sec" in capsys.readouterr().out


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be written is named, and not even the folder is made."""
    assert main(["init", str(tmp_path / "new"), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would write") == len(WRITTEN)
    assert list(tmp_path.iterdir()) == []


def test_outside_of_git(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on, with a warning, for there GitHub would not see the workflows."""
    assert main(["init", str(tmp_path / "new")]) == 0
    assert "not a git repository" in capsys.readouterr().err
    assert main(["init", str(repository / "below")]) == 0
    assert "not the top" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Where one file cannot be made, those before it and their folders are gone again; nothing else is."""
    (tmp_path / "own").write_text("precious")
    with pytest.raises(Error, match="nothing was written"):
        write(tmp_path, [StarterFile("a/b/first", b"1"), StarterFile("own/second", b"2")])
    assert _read(tmp_path) == {"own": "precious"}
    assert not (tmp_path / "a").exists()


def test_what_was_replaced_comes_back(tmp_path: Path) -> None:
    """Where a later file cannot be made, one that was filled in before is as it was."""
    (tmp_path / "first").write_text("to fill in")
    (tmp_path / "own").write_text("precious")
    with pytest.raises(Error, match="nothing was written"):
        write(tmp_path, [StarterFile("first", b"1", b"to fill in"), StarterFile("own/second", b"2")])
    assert _read(tmp_path) == {"first": "to fill in", "own": "precious"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_read_only_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and exit status 1."""
    tmp_path.chmod(0o500)
    assert main(["init", str(tmp_path)]) == 1
    assert "nothing was written" in capsys.readouterr().err


def test_a_dangling_link_is_something(tmp_path: Path) -> None:
    """A link to nowhere is there: writing through it would make a file elsewhere."""
    (tmp_path / ".gitignore").symlink_to(tmp_path / "elsewhere")
    assert compare(tmp_path, Choices("a/b", "v1")).different == (".gitignore",)


@pytest.mark.needs("nix")
def test_nix_reads_the_flake(repository: Path, nix: NixSandbox) -> None:
    """The flake that is written has outputs, with nothing but a nixpkgs added."""
    assert main(["init", str(repository)]) == 0
    flake = f"path:{repository / 'config'}"
    shown = nix.run("nix", "flake", "show", flake, "--override-input", "nixpkgs", f"path:{STANDIN}")
    assert "devShells" in shown.check().stdout

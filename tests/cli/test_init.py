"""A repository becomes a cache: everything is written or nothing is, and never over what is there."""

import os
import subprocess
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.cli.starter import StarterFile, compare, read_starter, write
from nixcache_oci.errors import Error
from tests.support.nix import NixSandbox
from tests.support.nix_modules import STANDIN

TOP = Path(__file__).parent.parent.parent
WRITTEN = {
    ".github/workflows/gc-cache.yml",
    ".github/workflows/publish-cache.yml",
    ".github/workflows/update-and-cache.yml",
    ".gitignore",
    "config/flake.nix",
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


def test_whose_actions(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step that uses our actions names the repository and ref asked for, and no other step changes."""
    assert main(["init", str(repository), "--actions", "someone/their-cache@abc123"]) == 0
    for name, text in _read(repository).items():
        assert "owner/nixcache-oci" not in text, name
    publish = (repository / ".github/workflows/publish-cache.yml").read_text()
    assert "uses: someone/their-cache/workflows/publish@abc123\n" in publish
    assert "uses: actions/checkout@de0f" in publish
    assert "put the owner" not in capsys.readouterr().out


@pytest.mark.parametrize("actions", ["", "nixcache-oci", "a/b@", "a/b@v1 # x", "a/b\nrun: x"])
def test_actions_that_are_none(repository: Path, actions: str) -> None:
    """What would not be a reference in the workflow is wrong usage, and nothing is written."""
    assert main(["init", str(repository), "--actions", actions]) == 2
    assert _read(repository) == {}


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
    assert "add *.sec to .gitignore" in capsys.readouterr().out


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_read_only_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and exit status 1."""
    tmp_path.chmod(0o500)
    assert main(["init", str(tmp_path)]) == 1
    assert "nothing was written" in capsys.readouterr().err


def test_a_dangling_link_is_something(tmp_path: Path) -> None:
    """A link to nowhere is there: writing through it would make a file elsewhere."""
    (tmp_path / ".gitignore").symlink_to(tmp_path / "elsewhere")
    assert compare(tmp_path, read_starter("a/b", "v1")).different == (".gitignore",)


@pytest.mark.needs("nix")
def test_nix_reads_the_flake(repository: Path, nix: NixSandbox) -> None:
    """The flake that is written has outputs, with nothing but a nixpkgs added."""
    assert main(["init", str(repository)]) == 0
    flake = f"path:{repository / 'config'}"
    shown = nix.run("nix", "flake", "show", flake, "--override-input", "nixpkgs", f"path:{STANDIN}")
    assert "devShells" in shown.check().stdout

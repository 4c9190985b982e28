"""The steps that `init` prints: they work as printed, one after the other, with what git knows filled in."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from nixcache_oci.cli.main import main
from tests.support.nix import NixSandbox

pytestmark = pytest.mark.needs("git")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ACTIONS = ["--actions", f"someone/nixcache-oci@{COMMIT}"]
OWN_FLAKE = "{ outputs = { self }: { }; }\n"
BIN = Path(sys.executable).parent

# What goes to GitHub is noted down instead.
GH = '#!/bin/sh\necho "$*" >> "$HOME/gh"\ncat >> "$HOME/gh"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where programs that stand for others are, and who commits."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "gh-bin").mkdir()
    (folder / "gh-bin/gh").write_text(GH)
    (folder / "gh-bin/gh").chmod(0o755)
    (folder / ".gitconfig").write_text("[user]\nname = o\nemail = o@example.com\n")
    return folder


@pytest.fixture
def shell_environment(home: Path, nix: NixSandbox) -> dict[str, str]:
    """As on a machine where this program, Nix and gh are installed, and no feature of Nix is switched on."""
    environment = nix.environment()
    conf = re.sub("experimental-features.*", "", environment["NIX_CONFIG"])
    path = os.pathsep.join([str(BIN), str(home / "gh-bin"), environment["PATH"]])
    return {**environment, "HOME": str(home), "PATH": path, "NIX_CONFIG": conf}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def commands_of(steps: str) -> list[str]:
    return re.findall(r"^    (.+)$", steps, re.MULTILINE)


def init(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        ["nixcache-oci", "init", *arguments],
        executable=str(BIN / "nixcache-oci"),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def follow(folder: Path, environment: dict[str, str], commands: Sequence[str]) -> None:
    """Paste all of it into one shell, which stops at the first that fails."""
    done = subprocess.run(
        ["/bin/sh", "-eux", "-c", "\n".join(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("nix")
@pytest.mark.parametrize("is_at_top", [False, True])
@pytest.mark.parametrize("branch", ["main", "trunk"])
def test_the_steps_work_as_printed(
    tmp_path: Path, home: Path, shell_environment: dict[str, str], branch: str, *, is_at_top: bool
) -> None:
    """From an empty repository, and from one with a flake at its top, to a commit that was pushed.

    Nothing is edited but the flake; Nix sees only files that git tracks.
    """
    remote, folder = tmp_path / "octocat/my-cache.git", tmp_path / "here"
    git(tmp_path, "init", "--quiet", "--bare", "-b", branch, str(remote))
    git(tmp_path, "clone", "--quiet", str(remote), str(folder))
    git(folder, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
    git(folder, "config", f"url.{remote}.insteadOf", "git@github.com:octocat/my-cache.git")
    flake = folder / ("flake.nix" if is_at_top else "config/flake.nix")
    if is_at_top:
        flake.write_text(OWN_FLAKE)
    steps = init(folder, shell_environment, *ACTIONS, *(["--flake", "."] if is_at_top else []))
    # The starter's own input cannot be had without a network.
    flake.write_text(OWN_FLAKE)
    *made, serve, use = commands_of(steps)
    follow(folder, shell_environment, made)
    assert "NIX_SIGNING_KEY" in (home / "gh").read_text()
    pushed = git(remote, "ls-tree", "-r", "--name-only", branch).splitlines()
    assert str(flake.relative_to(folder)) in pushed
    assert ".github/workflows/publish-cache.yml" in pushed
    assert not [name for name in pushed if name.endswith((".sec", ".pub"))]
    assert serve.endswith("nixcache-oci proxy")
    follow(folder, {**shell_environment, "NIX_CONF_DIR": str(home)}, [f"{use} --file {home}/nix.conf"])
    (public,) = folder.glob("*.pub")
    assert public.read_text().strip() in (home / "nix.conf").read_text()


@pytest.mark.needs("nix")
def test_a_folder_that_is_nothing_yet(tmp_path: Path, shell_environment: dict[str, str]) -> None:
    """The steps begin with going there, and with git."""
    folder = tmp_path / "my-cache"  # Nix 2.8 takes no spaces
    steps = init(tmp_path, shell_environment, *ACTIONS, str(folder))
    (folder / "config/flake.nix").write_text(OWN_FLAKE)
    commands = commands_of(steps)
    assert commands[:3] == [
        f"cd {shlex.quote(str(folder))}",
        "git init -b main",
        "git remote add origin https://github.com/OWNER/NAME.git",
    ]
    until_push = next(number for number, line in enumerate(commands) if line.startswith("git push"))
    follow(tmp_path, shell_environment, commands[:until_push])
    assert git(folder, "status", "--porcelain", "--", ".github", "config") == ""


def test_a_repository_that_git_refuses(tmp_path: Path, shell_environment: dict[str, str]) -> None:
    """Nothing is known of it then, and no step makes it anew or adds a remote that may be there."""
    (tmp_path / "here/.git").mkdir(parents=True)
    commands = commands_of(init(tmp_path / "here", shell_environment, *ACTIONS))
    assert not [line for line in commands if line.startswith(("git init", "git remote"))]
    assert commands[-3] == "git push --set-upstream origin main"


def test_keys_are_kept_out_of_git(tmp_path: Path, shell_environment: dict[str, str]) -> None:
    """A .gitignore of one's own is left; the step that adds to it works where its last line has no end."""
    git(tmp_path, "init", "--quiet", str(tmp_path / "here"))
    (tmp_path / "here/.gitignore").write_text("/target")
    (ignoring,) = [one for one in commands_of(init(tmp_path / "here", shell_environment)) if "*.sec" in one]
    follow(tmp_path / "here", shell_environment, [ignoring, "touch target a.sec"])
    assert git(tmp_path / "here", "status", "--porcelain", "--", "target", "a.sec") == ""


@pytest.mark.parametrize(
    ("remote", "repo", "registry"),
    [
        ("https://github.com/Octo-Cat/My.Cache", "Octo-Cat/My.Cache", None),
        ("https://octocat:ghp_SECRET@github.com/octocat/my-cache.git", "octocat/my-cache", None),
        ("git@github.com:octocat/my-cache.git", "octocat/my-cache", None),
        ("git@github.com:octocat/.github.git", "octocat/.github", None),
        ("https://github.mycorp.com/team/cache.git", "team/cache", "containers.github.mycorp.com"),
        ("git@octo.ghe.com:team/cache.git", "team/cache", "containers.octo.ghe.com"),
        ("https://git.mycorp.com/team/cache.git", "team/cache", None),
        ("/srv/git/cache.git", "OWNER/NAME", None),
        (None, "OWNER/NAME", None),
    ],
)
def test_what_git_knows_is_filled_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], remote: str | None, repo: str, registry: str | None
) -> None:
    """Owner and name come from the remote, an enterprise's registry with them; a password never shows."""
    git(tmp_path, "init", "--quiet", str(tmp_path))
    if remote is not None:
        git(tmp_path, "remote", "add", "origin", remote)
    assert main(["init", str(tmp_path), *ACTIONS]) == 0
    said = capsys.readouterr()
    assert "SECRET" not in said.out + said.err
    assert ("only GitHub runs these workflows" in said.err) == ("git.mycorp" in str(remote))
    before = f"NIXCACHE_REGISTRY={registry} " if registry else ""
    assert f"    {before}NIXCACHE_REPO={repo} " in said.out
    name = repo.partition("/")[2].lstrip(".")
    assert f" keygen {name}-1\n" in said.out
    assert ("--repo" in said.out) == (repo != "OWNER/NAME")
    inputs = [_inputs(tmp_path, workflow, action).get("registry") for workflow, action in PUBLISHING]
    assert inputs == [registry] * len(PUBLISHING)


PUBLISHING = [("publish-cache", "publish"), ("update-and-cache", "publish"), ("gc-cache", "gc")]


def _inputs(repository: Path, workflow: str, action: str) -> dict[str, object]:
    """What a workflow gives to one of our actions."""
    document = YAML(typ="safe").load(repository / f".github/workflows/{workflow}.yml")
    steps = [step for job in document["jobs"].values() for step in job["steps"]]
    (found,) = [step for step in steps if f"/workflows/{action}@" in step.get("uses", "")]
    inputs: dict[str, object] = found.get("with", {})
    return inputs


@pytest.mark.parametrize(
    ("folder", "flake"), [(".", "."), ("nix/", "nix"), ("./a/b", "a/b"), ("config", None)]
)
def test_another_flake(tmp_path: Path, folder: str, flake: str | None) -> None:
    """The workflows build and update it, whichever folder it is in; one that is there is not touched."""
    own = tmp_path / (flake or "config") / "flake.nix"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(OWN_FLAKE)
    assert main(["init", str(tmp_path), "--flake", folder]) == 0
    assert own.read_text() == OWN_FLAKE
    for workflow, action in (*PUBLISHING[:2], ("update-and-cache", "update")):
        assert _inputs(tmp_path, workflow, action).get("flake") == flake
    assert "signing-key" in _inputs(tmp_path, "publish-cache", "publish")
    assert "dry-run" in _inputs(tmp_path, "gc-cache", "gc")


def test_a_flake_at_the_top_is_found(tmp_path: Path) -> None:
    """Unasked, no second flake is put beside the one that is there."""
    (tmp_path / "flake.nix").write_text(OWN_FLAKE)
    assert main(["init", str(tmp_path)]) == 0
    assert not (tmp_path / "config").exists()
    assert _inputs(tmp_path, "publish-cache", "publish")["flake"] == "."


@pytest.mark.parametrize("folder", ["..", "/srv", "a/../b", "-x", "a b", "a#b", "github:o/n"])
def test_a_flake_that_is_elsewhere(tmp_path: Path, folder: str) -> None:
    """Only what the repository has can be built in its workflow: wrong usage, and nothing is written."""
    assert main(["init", str(tmp_path), f"--flake={folder}"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("branches", "current", "published"),
    [
        ([], "trunk", "trunk"),
        ([], "main", "main"),
        (["main"], "feature", "main"),
        (["master"], "feature", "master"),
        (["trunk"], "trunk", "trunk"),
        ([], "odd,name", "main"),
    ],
)
def test_the_branch_that_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], branches: list[str], current: str, published: str
) -> None:
    """It is the main one, and not the one that is worked on; what a workflow cannot name is left out."""
    git(tmp_path, "init", "--quiet", str(tmp_path))
    git(tmp_path, "symbolic-ref", "HEAD", f"refs/heads/{current}")
    for branch in branches:
        tree = git(tmp_path, "hash-object", "-t", "tree", "-w", "/dev/null")
        made = git(tmp_path, "-c", "user.name=o", "-c", "user.email=o@x", "commit-tree", "-m", "x", tree)
        git(tmp_path, "update-ref", f"refs/heads/{branch}", made)
    assert main(["init", str(tmp_path), *ACTIONS]) == 0
    workflow = YAML(typ="safe").load(tmp_path / ".github/workflows/publish-cache.yml")
    assert workflow["on"]["push"]["branches"] == [published]
    pushing = re.search("git push.* (.+)", capsys.readouterr().out)
    assert pushing is not None
    assert pushing[1] == current

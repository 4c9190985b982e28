"""What git tells of a repository, in whatever way its remote is written."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.git import choose_branch, parse_remote, read_checkout


@pytest.mark.parametrize(
    ("url", "named"),
    [
        *((f"https://github.com/o/n{end}", "github.com o/n") for end in ("", "/", ".git")),
        ("https://github.com/o/n.nix.git/", "github.com o/n.nix"),
        *(
            (f"{start}github.com/o/n", "github.com o/n")
            for start in ("http://www.", "https://u:token@", "git://")
        ),
        ("https://GitHub.com/O/N", "github.com O/N"),
        *(
            (f"{start}/o/n.git", "github.com o/n")
            for start in ("ssh://git@github.com", "git+ssh://git@github.com")
        ),
        ("ssh://git@ssh.github.com:443/o/n.git", "github.com o/n"),
        *((f"{start}o/n.git", "github.com o/n") for start in ("git@github.com:", "git@github.com:/", "gh:")),
        *(("github.com:o/n", "github.com o/n"), ("git@github.com-work:o/n.git", "github.com o/n")),
        ("git@github.com:corp_user/.github", "github.com corp_user/.github"),
        ("git@github.mycorp.com:o/n.git", "github.mycorp.com o/n"),
        ("https://octo.ghe.com/o/n", "octo.ghe.com o/n"),
        ("https://github.mycorp.com:8443/o/n", "github.mycorp.com o/n"),
        *(
            (path, None)
            for path in ("", "/srv/git/n.git", "../n.git", "file:///srv/o/n.git", "github.com:o/n:x")
        ),
        *((f"https://github.com/o{end}", None) for end in ("", "/n/tree/main", "/..", "/n%20m")),
        *(
            (url, None)
            for url in ("https://gitlab.com/group/sub/n.git", "https://[github.com/o/n", "ext::sh -c o/n")
        ),
    ],
)
def test_remotes(url: str, named: str | None) -> None:
    """Host, owner and name, out of each form that git and GitHub write; nothing out of anything else."""
    found = parse_remote(url)
    assert (None if found is None else f"{found.host} {found}") == named


@pytest.mark.parametrize(
    ("remote_head", "known", "current", "chosen"),
    [
        ("trunk", ["main"], "main", "trunk"),
        ("", ["main", "master", "x"], "x", "main"),
        ("", ["master", "x"], "x", "master"),
        ("", ["x", "y"], "y", "y"),
        ("", [], "x", "x"),
        ("", [], "", "main"),
    ],
)
def test_branches(remote_head: str, known: list[str], current: str, chosen: str) -> None:
    """The remote's word counts first, then a usual name, then what is checked out."""
    assert choose_branch(remote_head, known, current) == chosen


@pytest.mark.needs("git")
def test_a_clone_knows_its_remotes_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real git, asked about a folder below the top; variables that name another repository do not count."""
    git = ["git", "-c", "user.name=o", "-c", "user.email=o@example.com"]
    for arguments in (
        ["init", "--quiet", "-b", "trunk", "there"],
        ["-C", "there", "commit", "--quiet", "--allow-empty", "-m", "first"],
        ["clone", "--quiet", "--origin", "upstream", "there", "here"],
        ["-C", "here", "checkout", "--quiet", "-b", "feature"],
    ):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True, timeout=60)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    checkout = asyncio.run(read_checkout(tmp_path / "here/below/not-yet", os.environ))
    assert checkout is not None
    assert (checkout.remote, checkout.url) == ("upstream", str(tmp_path / "there"))
    assert (checkout.branch, checkout.current) == ("trunk", "feature")


def test_no_repository_and_no_git(tmp_path: Path) -> None:
    """Nothing is known then, which is no error."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    assert asyncio.run(read_checkout(tmp_path, environment)) is None
    assert asyncio.run(read_checkout(tmp_path, {**environment, "PATH": str(tmp_path)})) is None

"""Asks git about a folder: its repository's remote, what that names at GitHub, and the main branch."""

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nixcache_oci.clients.local_store.program import ignore_line, run_program
from nixcache_oci.errors import StoreError, UsageError

DEFAULT_BRANCH: Final = "main"

_USUAL_BRANCHES: Final = (DEFAULT_BRANCH, "master")
_MOST_BYTES: Final = 1024 * 1024
_SECONDS: Final = 10
# These would select another repository than the folder's.
_OF_ANOTHER: Final = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"})
GITHUB: Final = "github.com"
# git-clone(1), "GIT URLS": [user@]host:path, which has no slash before its first colon.
_SCP = re.compile(r"(?:[^@/:]+@)?(?P<host>\[[^\]]+\]|[^@/:]+):(?P<path>[^:]+)")
_PATH = re.compile(r"/?(?P<owner>[A-Za-z0-9_-]+)/(?P<name>[A-Za-z0-9._-]+?)(?:\.git)?/?")
_SCHEMES: Final = frozenset({"https", "http", "ssh", "git", "git+ssh", "git+https"})
_OTHER_HOSTS: Final = frozenset({"ssh.github.com", "www.github.com"})
_NO_NAMES: Final = frozenset({".", "..", ".git"})


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder in a git repository."""

    remote: str  # origin, or the only one; empty for none
    url: str  # of that remote, as git has it; it may hold a password
    branch: str  # to publish
    current: str  # branch that is checked out; empty for none


async def read_checkout(folder: Path, environment: Mapping[str, str]) -> Checkout | None:
    """Ask git about a folder, or its nearest existing parent; nothing is changed.

    None if there is no git, no repository, or none that git trusts for this user.
    """
    existing = await asyncio.to_thread(_nearest_existing, folder)
    git = _Git(existing, {name: value for name, value in environment.items() if name not in _OF_ANOTHER})
    try:
        async with asyncio.timeout(_SECONDS):
            return await _read(git)
    except (UsageError, StoreError, OSError):  # TimeoutError is an OSError
        return None


def choose_branch(remote_head: str, known: Collection[str], current: str) -> str:
    """Choose the branch to publish: the default of a clone's remote, a usual one, or the one checked out.

    ``known`` branches have commits, here or at the remote; the other two are empty if unknown.
    """
    if remote_head:
        return remote_head
    usual = next((branch for branch in _USUAL_BRANCHES if branch in known), "")
    return usual or current or DEFAULT_BRANCH


def _nearest_existing(folder: Path) -> Path:
    return next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), Path("/"))


async def _read(git: "_Git") -> Checkout | None:
    if await git.ask("rev-parse", "--git-dir") is None:
        return None
    remotes = (await git.ask("remote") or "").split()
    remote = "origin" if "origin" in remotes else remotes[0] if len(remotes) == 1 else ""
    url = await git.ask("remote", "get-url", "--", remote) if remote else None
    head = await git.ask("symbolic-ref", "--quiet", f"refs/remotes/{remote}/HEAD") if remote else None
    current = await git.ask("symbolic-ref", "--quiet", "--short", "HEAD") or ""
    prefixes = ("refs/heads/", *((f"refs/remotes/{remote}/",) if remote else ()))
    names = (await git.ask("for-each-ref", "--format=%(refname)", *prefixes) or "").split()
    known = {name.removeprefix(prefix) for name in names for prefix in prefixes if name.startswith(prefix)}
    remote_head = (head or "").removeprefix(prefixes[-1])
    return Checkout(remote, url or "", choose_branch(remote_head, known, current), current)


@dataclass(frozen=True, slots=True)
class _Git:
    """Asks git about one folder."""

    folder: Path
    environment: Mapping[str, str]

    async def ask(self, *arguments: str) -> str | None:
        """Run one command; None if git fails."""
        ended = await run_program(
            "git",
            ["-C", str(self.folder), *arguments],
            self.environment,
            on_line=ignore_line,
            most_bytes=_MOST_BYTES,
        )
        return ended.stdout.decode(errors="replace").strip() if ended.status == 0 else None


@dataclass(frozen=True, slots=True)
class GithubRepository:
    """A repository; ``host`` is ``github.com`` or an enterprise's."""

    host: str
    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def registry(self) -> str | None:
        """Host of an enterprise's container registry; None for the usual ghcr.io."""
        return None if self.host == GITHUB else f"containers.{self.host}"


def parse_remote(url: str) -> GithubRepository | None:
    """Read a remote's URL; None if it names no repository at a host, such as a folder.

    A host without a dot is an alias in an ssh configuration, and counts as github.com.
    """
    if "://" in url:
        try:
            parts = urlsplit(url)
            scheme, host, path = parts.scheme, parts.hostname or "", parts.path
        except ValueError:
            return None
        if scheme not in _SCHEMES:
            return None
    else:
        written = _SCP.fullmatch(url)
        if written is None:
            return None
        host, path = written["host"].lower(), written["path"]
    named = _PATH.fullmatch(path)
    if not host or named is None or named["name"] in _NO_NAMES:
        return None
    is_github = host in _OTHER_HOSTS or host.startswith(f"{GITHUB}-") or "." not in host
    return GithubRepository(GITHUB if is_github else host, named["owner"], named["name"])

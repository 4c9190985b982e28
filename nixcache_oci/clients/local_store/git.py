"""What git knows of a folder: where its repository comes from, and which branch is the main one."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store.program import ignore_line, run_program
from nixcache_oci.errors import StoreError, UsageError

DEFAULT_BRANCH: Final = "main"

_USUAL_BRANCHES: Final = (DEFAULT_BRANCH, "master")
_MOST_BYTES: Final = 1024 * 1024
_SECONDS: Final = 10
# They would name another repository than the folder's.
_OF_ANOTHER: Final = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"})


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder in a git repository.

    Attributes:
        remote: name of the remote that counts: origin, or the only one; empty where there is none.
        url: of that remote, as git has it; it may hold a password.
        branch: the one that is published.
        current: the one that is checked out; empty where none is.
    """

    remote: str
    url: str
    branch: str
    current: str


async def read_checkout(folder: Path, environment: Mapping[str, str]) -> Checkout | None:
    """Ask git about a folder, or about the nearest one above that exists; nothing is changed.

    Returns:
        None where there is no git, no repository, or none that git touches for this user.
    """
    existing = await asyncio.to_thread(_nearest_existing, folder)
    git = _Git(existing, {name: value for name, value in environment.items() if name not in _OF_ANOTHER})
    try:
        async with asyncio.timeout(_SECONDS):
            return await _read(git)
    except (UsageError, StoreError, OSError):  # TimeoutError is an OSError
        return None


def choose_branch(remote_head: str, known: Collection[str], current: str) -> str:
    """Choose the branch that is published.

    Args:
        remote_head: the one that the remote shows first, as a clone notes it; empty where not known.
        known: branches that have commits, here or at the remote.
        current: the one that is checked out; empty where none is.
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
        """Run one command; None where git refuses."""
        ended = await run_program(
            "git",
            ["-C", str(self.folder), *arguments],
            self.environment,
            on_line=ignore_line,
            most_bytes=_MOST_BYTES,
        )
        return ended.stdout.decode(errors="replace").strip() if ended.status == 0 else None

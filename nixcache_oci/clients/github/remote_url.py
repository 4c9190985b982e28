"""Reads the URL of a git remote: which repository at which GitHub it names."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

GITHUB: Final = "github.com"

# git-clone(1), "GIT URLS": [user@]host:path, which has no slash before its first colon.
_SCP = re.compile(r"(?:[^@/:]+@)?(?P<host>\[[^\]]+\]|[^@/:]+):(?P<path>[^:]+)")
_PATH = re.compile(r"/?(?P<owner>[A-Za-z0-9_-]+)/(?P<name>[A-Za-z0-9._-]+?)(?:\.git)?/?")
_SCHEMES: Final = frozenset({"https", "http", "ssh", "git", "git+ssh", "git+https"})
_OTHER_HOSTS: Final = frozenset({"ssh.github.com", "www.github.com"})
_NO_NAMES: Final = frozenset({".", "..", ".git"})


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

"""Prefixes: the first part of a path of the proxy, which names a cache by its repository.

``owner/name`` is the cache of a GitHub repository, ``host/repository`` any repository of any registry. What
has no dot or colon is no host, unless it is localhost or follows ``_/``. The proxy writes ``_/`` before a
host with a port, too: the first part of a narinfo's URL must have no colon. Source: facts about Nix clients,
"Reading".
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference, fit_repository
from nixcache_oci.proxy.writers.patterns import Pattern

GHCR: Final = "ghcr.io"
USUAL_IMAGE: Final = "nix-cache"

PREFIX: Final = r"[A-Za-z0-9_][A-Za-z0-9._:-]*(?:/[A-Za-z0-9._-][A-Za-z0-9._:-]*)+"
"""Whatever may be a prefix, as a regular expression without groups."""

LAYOUT_MARK: Final = "_layout/"
"""Before the digits that stand for a folder of this machine."""

_HOST_MARK: Final = "_/"
_HOST: Final = re.compile(r"localhost|[^/]*[.:][^/]*", re.IGNORECASE)
_GITHUB: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/(?!\.{1,2}\Z)[A-Za-z0-9._-]+")
# What the root has below it; a repository of such an owner is named with its host.
_RESERVED: Final = frozenset({"nar", "upstream", "log", "debuginfo", "realisations", "build-trace-v2"})
_PATTERN_HOST: Final = re.compile(r"[a-z0-9*.-]+(?::[0-9*]+)?")
_PATTERN_REPOSITORY: Final = re.compile(r"[a-z0-9*][a-z0-9*._/-]*")
_LAYOUT_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class RepositoryPattern:
    """Which repositories are meant: ``host/repository``, where ``*`` stands for anything in either part."""

    host: Pattern
    repository: Pattern

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern; FormatError if it has no two parts."""
        host, _, repository = text.lower().partition("/")
        if not _PATTERN_HOST.fullmatch(host) or not _PATTERN_REPOSITORY.fullmatch(repository):
            raise FormatError("expected host/repository, such as ghcr.io/*")
        # A repository's name has no colon: there, a star stands for slashes, too.
        return cls(Pattern.parse(host, "/"), Pattern.parse(repository, ":"))

    @property
    def names_host(self) -> bool:
        """Whether it names one host, which may then be at a private address."""
        return "*" not in self.host.text

    def allows(self, reference: RegistryReference) -> bool:
        """Check a repository."""
        return self.host.matches(reference.host) and self.repository.matches(reference.repository)


def parse_prefix(text: str) -> RegistryReference:
    """Read which repository a prefix names, in any case; FormatError if it names none."""
    marked = text.startswith(_HOST_MARK)
    host, _, repository = text.removeprefix(_HOST_MARK).partition("/")
    if marked or _HOST.fullmatch(host):
        return RegistryReference.of(host, repository, "")
    if not _GITHUB.fullmatch(text) or host.lower() in _RESERVED:
        raise FormatError("a prefix is owner/name, or host/repository")
    return RegistryReference.of(GHCR, fit_repository(text), USUAL_IMAGE)


def prefix_of(location: RegistryReference | Path) -> str | None:
    """Return the shortest prefix of a cache; None for a registry that is named by an IPv6 address."""
    if isinstance(location, Path):
        return f"{LAYOUT_MARK}{Digest.of(bytes(location)).hex[:_LAYOUT_DIGITS]}"
    short = location.repository.removesuffix(f"/{USUAL_IMAGE}")
    for candidate in (short, str(location), f"{_HOST_MARK}{location}"):
        try:
            if str(parse_prefix(candidate)) == str(location) and re.fullmatch(PREFIX, candidate):
                return candidate
        except FormatError:
            continue
    return None


def url_prefix(prefix: str) -> str:
    """Return a prefix as it is written into the URLs of narinfos."""
    return f"{_HOST_MARK}{prefix}" if ":" in prefix.partition("/")[0] else prefix


def spellings(prefix: str) -> frozenset[str]:
    """Return the ways to write a prefix that are looked up without parsing, in lower case."""
    ways = {prefix, url_prefix(prefix)}
    if not prefix.startswith("_"):
        ways.add(str(parse_prefix(prefix)))
    return frozenset(ways)

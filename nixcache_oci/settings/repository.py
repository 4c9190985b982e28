"""Which repository a command works on."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from nixcache_oci.clients.credentials import is_github
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.oci.reference import RegistryReference, fit_repository
from nixcache_oci.settings.parsers import LAYOUT_SCHEME, parse_registry
from nixcache_oci.settings.table import IMAGE, REGISTRY, REPO
from nixcache_oci.settings.variable import Values, shown

APPLICATION: Final = "nixcache-oci"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayoutLocation:
    """An OCI layout in a folder, which need not exist yet."""

    path: Path


@dataclass(frozen=True, slots=True)
class RegistryLocation:
    """A repository in a registry."""

    reference: RegistryReference


RepositoryConfig = LayoutLocation | RegistryLocation


def repository_config(values: Values) -> RepositoryConfig:
    """Decide which repository is meant; nothing said means the embedded cache in the user's data folder.

    Raises:
        UsageError: a registry without a repository, or names that a registry cannot have.
    """
    registry, repo, image = values.get(REGISTRY), values.get(REPO), values.get(IMAGE)
    if isinstance(registry, Path):
        return LayoutLocation(registry)
    if repo is None:
        if values.is_given(REGISTRY):
            raise UsageError(
                f"{REGISTRY.name} names a registry, but not which repository in it: "
                f"set {REPO.name} or {REPO.flag} to owner/name"
            )
        return LayoutLocation(_user_data() / "cache")
    try:
        reference = RegistryReference.of(registry, fit_repository(repo), image)
    except FormatError as error:  # each part is right, so that together they are too long
        raise UsageError(f"{REPO.name} and {IMAGE.name}: {error}") from error
    if is_github(reference.host):
        _check_github(repo)
    if fit_repository(repo) != repo:
        _log.warning(
            "registries accept no repository named %s: the cache is kept at %s; %s or %s can name another",
            repo,
            reference,
            REPO.name,
            IMAGE.name,
        )
    return RegistryLocation(reference)


def _user_data() -> Path:
    """Tell the folder of the embedded cache.

    Raises:
        UsageError: this user has no home folder.
    """
    try:
        found = platformdirs.user_data_path(APPLICATION, appauthor=False)
    except RuntimeError:
        found = Path()
    if not found.is_absolute():
        raise UsageError(
            f"there is no home folder for an embedded cache: set {REPO.name} to owner/name, or "
            f"{REGISTRY.name} to oci:/path"
        )
    return found


def _check_github(repo: str) -> None:
    """Make sure that a package at GitHub's registry can belong to this repository.

    Raises:
        UsageError: it cannot.
    """
    owner, _, name = repo.partition("/")
    if not name or "/" in name:
        raise UsageError(f"{REPO.name} {shown(repo)}: expected owner/name, such as octocat/my-cache")
    if fit_repository(owner) != owner:
        raise UsageError(
            f"{REPO.name} {shown(repo)}: GitHub's registry accepts no owner named {owner}, and a package "
            f"is named after its owner: set {REGISTRY.name} to another registry"
        )


def parse_location(text: str) -> RepositoryConfig:
    """Read a repository in one word: ``oci:/path``, or ``ghcr.io/owner/name/nix-cache``.

    Raises:
        UsageError: it is neither.
    """
    scheme, separator, rest = text.rpartition("://")
    host, slash, repository = rest.partition("/")
    try:
        if text.startswith(LAYOUT_SCHEME):
            registry = parse_registry(text)
            if isinstance(registry, Path):
                return LayoutLocation(registry)
        if slash and repository:
            return RegistryLocation(RegistryReference.of(f"{scheme}{separator}{host}", repository, ""))
    except FormatError as error:
        raise UsageError(f"{shown(text)}: {error}") from None
    raise UsageError(
        f"{shown(text)}: expected oci:/path, or a registry and a repository: ghcr.io/o/n/nix-cache"
    )

"""Which repository a command works on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.settings.parsers import LAYOUT_SCHEME, parse_registry
from nixcache_oci.settings.table import IMAGE, REGISTRY, REPO
from nixcache_oci.settings.variable import Values, shown

APPLICATION: Final = "nixcache-oci"


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
        return LayoutLocation(platformdirs.user_data_path(APPLICATION, appauthor=False) / "cache")
    try:
        return RegistryLocation(RegistryReference.of(registry, repo, image))
    except FormatError as error:  # each part is right, so that together they are too long
        raise UsageError(f"{REPO.name} and {IMAGE.name}: {error}") from error


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

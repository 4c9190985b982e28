"""Which repository a command works on, its limits, and where its index and its queue are kept."""

import logging
import os
import re
from pathlib import Path
from typing import Final

import platformdirs

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.clients.credentials import is_github
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.oci.reference import RegistryReference, fit_repository
from nixcache_oci.settings.parsers import LAYOUT_SCHEME, parse_registry
from nixcache_oci.settings.values import Values, shown
from nixcache_oci.settings.variables import (
    IMAGE,
    INDEX_DIR,
    MAX_BLOB_BYTES,
    MAX_LAYERS,
    QUEUE_DIR,
    REGISTRY,
    REPO,
    UPLOAD_DIR,
)

_APPLICATION: Final = "nixcache-oci"

# What registries with limits of their own take. Sources: GitHub's documentation, "Working with the
# Container registry"; Amazon's, "Amazon ECR service quotas", and users, who report 500 layers; Quay's and
# Forgejo's code; GitLab's documentation.
_LIMITS: Final = {
    r"ghcr\.io": SegmentOptions(max_blob_bytes=10 * 10**9),
    r".+\.dkr\.ecr\..+": SegmentOptions(490, 52_000 * 2**20),
    r"public\.ecr\.aws": SegmentOptions(490, 10 * 10**9),
    r"quay\.io": SegmentOptions(max_blob_bytes=20 * 10**9),
    r"registry\.gitlab\.com": SegmentOptions(max_blob_bytes=5 * 10**9),
    r"codeberg\.org": SegmentOptions(500),
}

# Root's queue is the machine's: Nix's daemon runs the hook as root.
_QUEUE_OF_ROOT: Final = Path("/var/lib/nixcache-queue")

_log = logging.getLogger(__name__)


RepositoryConfig = Path | RegistryReference
"""The folder of an OCI layout, which need not exist yet, or a repository in a registry."""


def repository_config(values: Values) -> RepositoryConfig:
    """Find the repository that is meant; without settings, the embedded cache in the user's data folder.

    Raises:
        UsageError: a registry without a repository, or names that a registry cannot have.
    """
    registry, repo = values.get(REGISTRY), values.get(REPO)
    if isinstance(registry, str) and repo is None:
        if values.is_given(REGISTRY):
            raise UsageError(
                f"{REGISTRY.name} names a registry, but not which repository in it: "
                f"set {REPO.name} or {REPO.flag} to owner/name"
            )
        return _user_data() / "cache"
    return locate(registry, repo or "", values.get(IMAGE))


def locate(registry: str | Path, repo: str, image: str) -> RepositoryConfig:
    """Find a repository by its parsed settings; in an OCI layout, the other two do not matter.

    Raises:
        UsageError: names that a registry cannot have.
    """
    if isinstance(registry, Path):
        return registry
    try:
        reference = RegistryReference.of(registry, fit_repository(repo), image)
    except FormatError as error:  # each part is valid, so together they are too long
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
    return reference


def repository_source(location: RepositoryConfig, repo: str | None, values: Values) -> str | None:
    """Return the URL of the GitHub repository that the cache belongs to, to which GHCR links the package."""
    # Any other depth names a repository of some registry only.
    if isinstance(location, Path) or repo is None or repo.count("/") != 1:
        return None
    return f"{values.environment.get('GITHUB_SERVER_URL') or 'https://github.com'}/{repo}"


def segment_options(values: Values, location: RepositoryConfig, repo: str | None) -> SegmentOptions:
    """Return how segments of a repository's cache are written: settings, else what its registry takes."""
    host = location.host if isinstance(location, RegistryReference) else ""
    known = next((limits for name, limits in _LIMITS.items() if re.fullmatch(name, host)), SegmentOptions())
    return SegmentOptions(
        values.get(MAX_LAYERS) or known.max_layers,
        values.get(MAX_BLOB_BYTES) or known.max_blob_bytes,
        repository_source(location, repo, values),
    )


def index_dir(values: Values) -> Path:
    """Return the folder for the indexes of all caches; ``NOWHERE`` for a user without a home folder."""
    # systemd.exec(5), CacheDirectory=: folders are separated by colons; ours comes first.
    of_service = values.environment.get("CACHE_DIRECTORY", "").partition(":")[0]
    given = values.get(INDEX_DIR)
    if given is not None:
        return given
    if of_service:
        return Path(of_service)
    try:
        found = platformdirs.user_cache_path(_APPLICATION, appauthor=False)
    except RuntimeError:  # no home folder
        return NOWHERE
    return found if found.is_absolute() else NOWHERE


def upload_dir(values: Values) -> Path:
    """Return the folder for uploads to all caches; UsageError for a user without a home folder."""
    # systemd.exec(5), StateDirectory=.
    of_service = values.environment.get("STATE_DIRECTORY", "").partition(":")[0]
    given = values.get(UPLOAD_DIR)
    if given is not None:
        return given
    return Path(of_service) if of_service else _user_data() / "uploads"


def queue_dir(values: Values) -> Path:
    """Return the folder of the queue, absolute; UsageError for a user without a home folder."""
    # systemd.exec(5), StateDirectory=: as with CacheDirectory=.
    of_service = values.environment.get("STATE_DIRECTORY", "").partition(":")[0]
    given = values.get(QUEUE_DIR)
    if given is not None:
        return given.absolute()
    if of_service:
        return Path(of_service)
    if os.geteuid() == 0:
        return _QUEUE_OF_ROOT
    try:
        return platformdirs.user_state_path(_APPLICATION, appauthor=False).absolute() / "queue"
    except RuntimeError:  # no home folder
        raise UsageError(f"there is no home folder for the queue: set {QUEUE_DIR.name}") from None


def _user_data() -> Path:
    try:
        found = platformdirs.user_data_path(_APPLICATION, appauthor=False)
    except RuntimeError:
        found = Path()
    if not found.is_absolute():
        raise UsageError(
            f"there is no home folder for an embedded cache: set {REPO.name} to owner/name, or "
            f"{REGISTRY.name} to oci:/path"
        )
    return found


def _check_github(repo: str) -> None:
    """Refuse a repository to which no package in GitHub's registry can belong."""
    owner, _, name = repo.partition("/")
    if not name or "/" in name:
        raise UsageError(f"{REPO.name} {shown(repo)}: expected owner/name, such as octocat/my-cache")
    if fit_repository(owner) != owner:
        raise UsageError(
            f"{REPO.name} {shown(repo)}: GitHub's registry accepts no owner named {owner}, and a package "
            f"is named after its owner: set {REGISTRY.name} to another registry"
        )


def parse_location(text: str) -> RepositoryConfig:
    """Read a repository that is written as ``oci:/path`` or ``ghcr.io/owner/name/nix-cache``.

    Raises:
        UsageError: it is neither.
    """
    scheme, separator, rest = text.rpartition("://")
    host, slash, repository = rest.partition("/")
    try:
        if text.startswith(LAYOUT_SCHEME):
            registry = parse_registry(text)
            if isinstance(registry, Path):
                return registry
        if slash and repository:
            return RegistryReference.of(f"{scheme}{separator}{host}", repository, "")
    except FormatError as error:
        raise UsageError(f"{shown(text)}: {error}") from None
    raise UsageError(
        f"{shown(text)}: expected oci:/path, or a registry and a repository: ghcr.io/o/n/nix-cache"
    )

"""The caches that the proxy serves, and the credentials of each."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.clients.credentials import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE
from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy.prefix import prefix_of
from nixcache_oci.settings import parsers, variables
from nixcache_oci.settings.repository_config import RepositoryConfig, locate, repository_config
from nixcache_oci.settings.values import Values, shown

MAX_CACHES_FILE_BYTES: Final = 64 * 1024
MOST_CACHES: Final = 64
"""A look-up that none of them has asks each."""

_KEYS: Final = frozenset({"repo", "registry", "image", "public-keys", "token-file", "uploads"})


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """One cache.

    Attributes:
        location: of its repository.
        repo: ``owner/name`` that it belongs to; None if that is not known.
        public_keys: required signers of its narinfos; empty for none.
        environment: that its credentials come from; not shown.
        takes_uploads: whether uploads go there, if they are taken at all.
    """

    location: RepositoryConfig
    repo: str | None
    public_keys: tuple[PublicKey, ...]
    environment: Mapping[str, str] = field(repr=False)
    takes_uploads: bool = True

    @property
    def prefix(self) -> str | None:
        """What names it in URLs; None if nothing does."""
        return prefix_of(self.location)


def cache_configs(values: Values) -> tuple[CacheConfig, ...]:
    """Find the caches that are served, in the order in which they are asked; at least one.

    ``NIXCACHE_TOKEN`` and ``NIXCACHE_TOKEN_FILE`` are for those of ``NIXCACHE_REPO``, and for no others.

    Raises:
        UsageError: a setting or the file cannot be used, or a cache is named twice.
    """
    environment = values.merged_environment(variables.REPOSITORY_VARIABLES)
    keys = values.get(variables.PUBLIC_KEYS)
    path = values.get(variables.CACHES_FILE)
    of_file = [] if path is None else _read_file(path, environment)
    repos = values.get(variables.REPOS)
    registry = values.get(variables.REGISTRY)
    found: list[tuple[RepositoryConfig, str | None]]
    if len(repos) > 1 and isinstance(registry, str):
        image = values.get(variables.IMAGE)
        found = [(locate(registry, repo, image), repo) for repo in repos]
    elif repos or values.is_given(variables.REGISTRY) or not of_file:
        found = [(repository_config(values), repos[0] if repos else None)]
    else:
        found = []
    configs = [*(CacheConfig(location, repo, keys, environment) for location, repo in found), *of_file]
    _check(configs)
    return tuple(configs)


def _check(configs: list[CacheConfig]) -> None:
    if len(configs) > MOST_CACHES:
        raise UsageError(f"{len(configs)} caches are configured, over the limit of {MOST_CACHES}")
    names = [str(config.location) for config in configs]
    for config, name in zip(configs, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"{name} is configured twice")
        if len(configs) > 1 and config.prefix is None:
            raise UsageError(f"{name}: beside other caches, a registry needs a host name or an IPv4 address")


def _read_file(path: Path, environment: Mapping[str, str]) -> list[CacheConfig]:
    where = f"{variables.CACHES_FILE.name}: {path}"
    try:
        content = read_small(path, MAX_CACHES_FILE_BYTES)
        if len(content) > MAX_CACHES_FILE_BYTES:
            raise UsageError(f"{where}: longer than {MAX_CACHES_FILE_BYTES} bytes")
        document = tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # what is wrong where: TOML holds no secrets here
        raise UsageError(f"{where}: not TOML: {error}") from None
    entries = document.pop("cache", [])
    if document or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{where}: expected tables [[cache]], and nothing else")
    configs = []
    for number, entry in enumerate(entries, 1):
        try:
            configs.append(_read_entry(entry, path.parent, environment))
        except (FormatError, UsageError) as error:
            raise UsageError(f"{where}: cache {number}: {error}") from None
    return configs


def _read_entry(entry: Mapping[str, object], folder: Path, environment: Mapping[str, str]) -> CacheConfig:
    if others := sorted(entry.keys() - _KEYS):
        raise FormatError(f"{shown(others[0])} is none of {', '.join(sorted(_KEYS))}")
    keys = entry.get("public-keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError("public-keys: expected a list of texts")
    uploads = entry.get("uploads", False)
    if not isinstance(uploads, bool):
        raise FormatError("uploads: expected true or false")
    registry = parsers.parse_registry(_text(entry, "registry", variables.REGISTRY.default))
    repo = parsers.parse_repo(_text(entry, "repo"))
    if repo is None and isinstance(registry, str):
        raise FormatError("repo: expected owner/name, such as octocat/my-cache")
    image = parsers.parse_image(_text(entry, "image", variables.IMAGE.default))
    token_file = _text(entry, "token-file")
    own = {TOKEN_FILE_VARIABLE: str(folder / token_file)} if token_file else {}
    others_tokens = {TOKEN_VARIABLE, TOKEN_FILE_VARIABLE}
    return CacheConfig(
        locate(registry, repo or "", image),
        repo,
        parsers.parse_public_keys(" ".join(keys)),
        {name: text for name, text in environment.items() if name not in others_tokens} | own,
        uploads,
    )


def _text(entry: Mapping[str, object], name: str, default: str = "") -> str:
    text = entry.get(name, default)
    if not isinstance(text, str):
        raise FormatError(f"{name}: expected a text")
    return text

"""A publisher's settings besides the repository: signing keys, and the registry's limits."""

import codecs
from pathlib import Path
from typing import Final

from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import RegistryLocation, RepositoryConfig, repository_source
from nixcache_oci.settings.values import Values

# Source: GitHub's documentation, "Working with the Container registry".
_GHCR: Final = "ghcr.io"
_GHCR_MAX_BLOB_BYTES: Final = 10 * 10**9
_MAX_KEY_BYTES: Final = 4096


def signing_keys(values: Values) -> tuple[SecretKey, ...]:
    """Read every signing key; one that is given twice counts once.

    Raises:
        UsageError: a file that cannot be read or holds no key, or two keys of one name.
    """
    keys: dict[str, SecretKey] = {}
    of_environment = values.get(variables.SIGNING_KEY)
    found = [_read_key(path) for path in values.get(variables.SIGNING_KEY_FILE)]
    for key in [*found, *([of_environment] if of_environment is not None else [])]:
        if keys.setdefault(key.name, key) != key:
            raise UsageError(
                f"signing keys: two different ones are named {key.name}; clients accept only one key per name"
            )
    return tuple(keys.values())


def nix_environment(values: Values) -> dict[str, str]:
    """Return the environment that Nix's own is chosen from; ``--pass-env`` counts like its variable.

    Raises:
        UsageError: it names a variable that must not be passed on.
    """
    values.get(variables.PASS_ENV)
    return values.merged_environment((variables.PASS_ENV,))


def segment_options(values: Values, location: RepositoryConfig) -> SegmentOptions:
    """Return how segments are written there, and the largest blob that the registry accepts."""
    most = values.get(variables.MAX_BLOB_BYTES)
    if most is None and isinstance(location, RegistryLocation) and location.reference.host == _GHCR:
        most = _GHCR_MAX_BLOB_BYTES
    return SegmentOptions(values.get(variables.MAX_LAYERS), most, repository_source(location, values))


def _read_key(path: Path) -> SecretKey:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"{variables.SIGNING_KEY_FILE.name}: {path}: {error.strerror}") from None
    # Some shells write redirected output as UTF-16.
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if is_utf16 else "utf-8", errors="replace")
    try:
        return SecretKey.parse(text)
    except FormatError as error:
        raise UsageError(
            f"{variables.SIGNING_KEY_FILE.name}: {path}: {error}; nixcache-oci keygen makes a pair"
        ) from None

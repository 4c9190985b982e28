"""What a publisher is told beside the repository: keys, and the limits of the registry."""

import codecs
from pathlib import Path
from typing import Final

from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings import table
from nixcache_oci.settings.repository import RegistryLocation, RepositoryConfig
from nixcache_oci.settings.variable import Values

# Source: GitHub's documentation, "Working with the Container registry".
_GHCR: Final = "ghcr.io"
_GHCR_MAX_BLOB_BYTES: Final = 10 * 10**9
_MAX_KEY_BYTES: Final = 4096


def signing_keys(values: Values) -> tuple[SecretKey, ...]:
    """Read every key to sign with; one that is given twice counts once.

    Raises:
        UsageError: a file that cannot be read or holds no key, or two keys of one name.
    """
    keys: dict[str, SecretKey] = {}
    of_environment = values.get(table.SIGNING_KEY)
    found = [_read_key(path) for path in values.get(table.SIGNING_KEY_FILE)]
    for key in [*found, *([of_environment] if of_environment is not None else [])]:
        if keys.setdefault(key.name, key) != key:
            raise UsageError(
                f"signing keys: two different ones are named {key.name}; clients accept only one key per name"
            )
    return tuple(keys.values())


def nix_environment(values: Values) -> dict[str, str]:
    """Give the variables out of which Nix gets its own; a flag that passes some on counts like its variable.

    Raises:
        UsageError: one is to be passed on that may not be.
    """
    values.get(table.PASS_ENV)
    return values.merged_environment((table.PASS_ENV,))


def max_blob_bytes(values: Values, location: RepositoryConfig) -> int | None:
    """Tell what the registry takes as one blob; None for any size."""
    given = values.get(table.MAX_BLOB_BYTES)
    if given is None and isinstance(location, RegistryLocation) and location.reference.host == _GHCR:
        return _GHCR_MAX_BLOB_BYTES
    return given


def _read_key(path: Path) -> SecretKey:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"{table.SIGNING_KEY_FILE.name}: {path}: {error.strerror}") from None
    # Some shells save what is redirected to a file in UTF-16.
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if is_utf16 else "utf-8", errors="replace")
    try:
        return SecretKey.parse(text)
    except FormatError as error:
        raise UsageError(
            f"{table.SIGNING_KEY_FILE.name}: {path}: {error}; nixcache-oci keygen makes a pair"
        ) from None

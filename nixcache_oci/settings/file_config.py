"""Settings that files hold, some of them secrets: signing keys, and upstream caches."""

import codecs
from pathlib import Path
from typing import Final

from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values

MAX_UPSTREAM_FILE_BYTES: Final = 64 * 1024
_MAX_KEY_BYTES: Final = 4096


def signing_keys(values: Values) -> tuple[SecretKey, ...]:
    """Read every signing key; one that is given twice counts once.

    Raises:
        UsageError: a file that cannot be read or holds no key, or two keys of one name.
    """
    keys: dict[str, SecretKey] = {}
    of_environment = values.get(variables.SIGNING_KEY)
    found = [_read_key(path) for path in values.get(variables.SIGNING_KEY_FILE)]
    for key in [*found, of_environment]:
        if key is not None and keys.setdefault(key.name, key) != key:
            raise UsageError(
                f"signing keys: two different ones are named {key.name}; clients accept only one key per name"
            )
    return tuple(keys.values())


def upstream_urls(values: Values) -> tuple[str, ...]:
    """Read the base URLs of all upstream caches; where both name a cache, the file's spelling counts.

    Raises:
        UsageError: a URL or the file cannot be used; its text repeats nothing of the file.
    """
    urls = {str(parse_upstream(url)): url for url in values.get(variables.UPSTREAM)}
    path = values.get(variables.UPSTREAM_FILE)
    if path is not None:
        try:
            urls |= _parse_upstream_file(_read_upstreams(path))
        except FormatError as error:
            raise UsageError(f"{variables.UPSTREAM_FILE.name}: {path}: {error}") from None
    return tuple(urls.values())


def _parse_upstream_file(text: str) -> dict[str, str]:
    """Read one URL per line; blank lines and those that begin with ``#`` are skipped."""
    urls = {}
    for number, line in enumerate(text.splitlines(), 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        try:
            urls[str(parse_upstream(url))] = url
        except UsageError:  # only the number: the line may hold a password
            raise FormatError(
                f"line {number}: expected http[s]://[user:password@]host[:port][/path]"
            ) from None
    return urls


def _read_key(path: Path) -> SecretKey:
    try:
        content = read_small(path, _MAX_KEY_BYTES)
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


def _read_upstreams(path: Path) -> str:
    try:
        content = read_small(path, MAX_UPSTREAM_FILE_BYTES)
        if len(content) > MAX_UPSTREAM_FILE_BYTES:
            raise FormatError(f"longer than {MAX_UPSTREAM_FILE_BYTES} bytes; expected one URL per line")
        return content.decode()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FormatError("not UTF-8 text; expected one URL per line") from None

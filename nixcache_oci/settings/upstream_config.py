"""Upstream caches: from a variable or flag, and from a file, whose URLs may hold passwords."""

from pathlib import Path
from typing import Final

from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values

MAX_FILE_BYTES: Final = 64 * 1024


def upstream_urls(values: Values) -> tuple[str, ...]:
    """Read the base URLs of all upstream caches; where both name a cache, the file's spelling counts.

    Raises:
        UsageError: a URL or the file cannot be used; its text repeats nothing of the file.
    """
    urls = {str(parse_upstream(url)): url for url in values.get(variables.UPSTREAM)}
    path = values.get(variables.UPSTREAM_FILE)
    if path is not None:
        try:
            urls |= {str(parse_upstream(url)): url for url in parse_upstream_file(_read(path))}
        except FormatError as error:
            raise UsageError(f"{variables.UPSTREAM_FILE.name}: {path}: {error}") from None
    return tuple(urls.values())


def parse_upstream_file(text: str) -> tuple[str, ...]:
    """Read one URL per line; blank lines and those that begin with ``#`` are skipped.

    Raises:
        FormatError: a line is no URL of a binary cache; only its number is shown, for it may hold a password.
    """
    urls = []
    for number, line in enumerate(text.splitlines(), 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        try:
            parse_upstream(url)
        except UsageError:
            raise FormatError(
                f"line {number}: expected http[s]://[user:password@]host[:port][/path]"
            ) from None
        urls.append(url)
    return tuple(urls)


def _read(path: Path) -> str:
    try:
        content = read_small(path, MAX_FILE_BYTES)
        if len(content) > MAX_FILE_BYTES:
            raise FormatError(f"longer than {MAX_FILE_BYTES} bytes; expected one URL per line")
        return content.decode()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FormatError("not UTF-8 text; expected one URL per line") from None

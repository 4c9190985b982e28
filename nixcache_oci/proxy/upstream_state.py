"""Persistent state of upstreams, because Nix caches the URLs of their NARs for 30 days.

Two files in the index folder: the secret of these URLs, and the base URLs, without credentials, of former
upstreams. They decide where requests go, so files that others may have written are not read.
"""

import json
import logging
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.clients.durable_file import unfinished_name, write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.clients.upstream.address import Upstream, parse_upstream
from nixcache_oci.errors import Error, FormatError

_log = logging.getLogger(__name__)

KEY_FILE: Final = "upstream-urls.secret"
FORMER_FILE: Final = "upstreams.json"
REMEMBERED_SECONDS: Final = 30 * 24 * 3600.0
MOST_FORMER: Final = 64
"""Beyond, the oldest are forgotten."""

_SECRET_BYTES: Final = 32
_MAX_BYTES: Final = 256 * 1024
_MODE: Final = 0o600
_ANYBODY_ELSE: Final = stat.S_IRWXG | stat.S_IRWXO
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def load_url_secret(folder: Path) -> bytes:
    """Read or create the secret in the index folder, which need not exist; blocks.

    If that fails, a temporary secret is used, and a warning logged.
    """
    path = RootedPath(folder) / KEY_FILE
    try:
        path.parent.make_folder()
        with suppress(FileNotFoundError):
            return _read_secret(path)
        _make_secret(path)
        return _read_secret(path)
    except OSError as error:
        fields = {
            "path": str(path),
            "error": "there is no home folder" if folder == NOWHERE else error.strerror or str(error),
            "hint": "NAR URLs of upstreams that clients remember will not outlive this process",
        }
        _log.warning("the secret for upstream URLs is unusable", extra={"fields": fields})
        return secrets.token_bytes(_SECRET_BYTES)


def _read_secret(path: RootedPath) -> bytes:
    descriptor = path.open()
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & _ANYBODY_ELSE:
            raise OSError("others may know it; remove it")
        content = os.read(descriptor, _SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) != _SECRET_BYTES:
        raise OSError(f"it is not {_SECRET_BYTES} bytes long; remove it")
    return content


def _make_secret(path: RootedPath) -> None:
    candidate = path.parent / unfinished_name()
    try:
        with candidate.create(_MODE) as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first
            path.hardlink_to(candidate)
    finally:
        candidate.unlink(missing_ok=True)
    path.parent.sync()


def remember_upstreams(folder: Path, configured: Iterable[Upstream], now: float) -> tuple[Upstream, ...]:
    """Save in the index folder which upstreams are configured, and return former ones; blocks.

    If the file cannot be read or written, URLs of former upstreams are not served, and a warning is logged.
    """
    path = RootedPath(folder) / FORMER_FILE
    current = {str(upstream.base): upstream for upstream in configured}
    left: dict[str, float] = {}
    try:
        path.parent.make_folder()
        with suppress(FileNotFoundError):
            left = _read_former(path, now)
    except (OSError, Error) as error:
        _warn_of_former(path, error)
    left = {
        base: at for base, at in left.items() if base not in current and 0 <= now - at < REMEMBERED_SECONDS
    }
    newest = dict(sorted(left.items(), key=lambda item: -item[1])[:MOST_FORMER])
    document = {**newest, **dict.fromkeys(current)}
    try:
        write_file(path, [json.dumps({"upstreams": document}, indent=1).encode()], path.parent, mode=_MODE)
        path.parent.sync()
    except OSError as error:
        _warn_of_former(path, error)
    return tuple(_without_credentials(base) for base in newest)


def _read_former(path: RootedPath, now: float) -> dict[str, float]:
    """Read when each upstream left the configuration; those configured last leave it now.

    Raises FormatError if it is malformed, or others may have written it; OSError if it cannot be read.
    """
    with os.fdopen(path.open(), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & _BY_OTHERS:
            raise FormatError("others may have written it; remove it")
        content = file.read(_MAX_BYTES + 1)
    try:
        upstreams = json.loads(content)["upstreams"]
        left = {base: now if at is None else float(at) for base, at in upstreams.items()}
        for base in left:
            _without_credentials(base)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"not what this program wrote: {error}; remove it") from None
    return left


def _without_credentials(base: str) -> Upstream:
    upstream = parse_upstream(base)
    if upstream.authorization or str(upstream.base) != base:
        raise FormatError("not a base URL as this program writes it; remove it")
    return upstream


def _warn_of_former(path: RootedPath, error: Exception) -> None:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    hint = "NAR URLs of former upstreams that clients remember are not served"
    _log.warning(
        "former upstreams are not known", extra={"fields": {"path": str(path), "error": reason, "hint": hint}}
    )

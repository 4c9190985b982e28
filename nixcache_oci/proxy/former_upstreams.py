"""Which upstreams there were: Nix remembers the URLs of their NARs for 30 days, whatever is configured since.

One file in the index folder, of base URLs without credentials. It decides where requests go, so one that
others could have written is not read.
"""

import json
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.clients.upstream.address import Upstream, parse_upstream
from nixcache_oci.errors import Error, FormatError

_log = logging.getLogger(__name__)

FILE_NAME: Final = "upstreams.json"
REMEMBERED_SECONDS: Final = 30 * 24 * 3600.0
MOST_FORMER: Final = 64
"""Beyond, those that left the configuration first are forgotten."""

_MAX_BYTES: Final = 256 * 1024
_MODE: Final = 0o600
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def remember_upstreams(folder: Path, configured: Iterable[Upstream], now: float) -> tuple[Upstream, ...]:
    """Note which upstreams are configured, and give those that were until a while ago; blocks.

    Where the file cannot be read or written, URLs of former upstreams do not outlive this; the log says so.

    Args:
        folder: the index folder; it need not exist yet.
        configured: upstreams.
        now: seconds of ``time.time``.
    """
    path = RootedPath(folder) / FILE_NAME
    current = {str(upstream.base): upstream for upstream in configured}
    left: dict[str, float] = {}
    try:
        path.parent.make_folder()
        with suppress(FileNotFoundError):
            left = _read(path, now)
    except (OSError, Error) as error:
        _warn(path, error)
    left = {
        base: at for base, at in left.items() if base not in current and 0 <= now - at < REMEMBERED_SECONDS
    }
    newest = dict(sorted(left.items(), key=lambda item: -item[1])[:MOST_FORMER])
    document = {**newest, **dict.fromkeys(current)}
    try:
        write_file(path, [json.dumps({"upstreams": document}, indent=1).encode()], path.parent, mode=_MODE)
        path.parent.sync()
    except OSError as error:
        _warn(path, error)
    return tuple(_without_credentials(base) for base in newest)


def _read(path: RootedPath, now: float) -> dict[str, float]:
    """Read when each upstream left the configuration; those that were in it until now leave it now."""
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


def _warn(path: RootedPath, error: Exception) -> None:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    hint = "NAR URLs of former upstreams that clients remember are not served"
    _log.warning(
        "former upstreams are not known", extra={"fields": {"path": str(path), "error": reason, "hint": hint}}
    )

"""The secret that the URLs of upstream NARs are made with: one file for every proxy of this user.

Nix remembers such URLs for 30 days, so it has to outlive this process.
"""

import logging
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.clients.durable_file import unfinished_name
from nixcache_oci.clients.rooted_path import RootedPath

_log = logging.getLogger(__name__)

FILE_NAME: Final = "upstream-urls.secret"
_BYTES: Final = 32
_MODE: Final = 0o600
_ANYBODY_ELSE: Final = stat.S_IRWXG | stat.S_IRWXO


def load_url_secret(folder: Path) -> bytes:
    """Read the secret, and make it where there is none; blocks, and belongs on a thread.

    Where that cannot be, it is one of this process alone, and the log says so.

    Args:
        folder: the index folder; it need not exist yet.
    """
    path = RootedPath(folder) / FILE_NAME
    try:
        path.parent.make_folder()
        with suppress(FileNotFoundError):
            return _read(path)
        _make(path)
        return _read(path)
    except OSError as error:
        fields = {
            "path": str(path),
            "error": "there is no home folder" if folder == NOWHERE else error.strerror or str(error),
            "hint": "NAR URLs of upstreams that clients remember will not outlive this process",
        }
        _log.warning("the secret for upstream URLs is unusable", extra={"fields": fields})
        return secrets.token_bytes(_BYTES)


def _read(path: RootedPath) -> bytes:
    descriptor = path.open()
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & _ANYBODY_ELSE:
            raise OSError("others may know it; remove it")
        content = os.read(descriptor, _BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) != _BYTES:
        raise OSError(f"it is not {_BYTES} bytes long; remove it")
    return content


def _make(path: RootedPath) -> None:
    candidate = path.parent / unfinished_name()
    try:
        with candidate.create(_MODE) as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first
            path.hardlink_to(candidate)
    finally:
        candidate.unlink(missing_ok=True)
    path.parent.sync()

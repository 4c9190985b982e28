"""The file nix.conf that is meant, and adding lines to it in one step, with a backup."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nixcache_oci.cache.timestamp import format_tag_time, now
from nixcache_oci.clients.durable_file import unfinished_name
from nixcache_oci.clients.local_store.nix_settings import nix_conf_folder
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.nix.nix_conf import Substituter, complete_conf

_NEW_FILE_MODE: Final = 0o644
_MODE_BITS: Final = 0o7777
_MAX_BACKUPS: Final = 100  # within one second


def find_nix_conf(environment: Mapping[str, str], *, is_root: bool) -> Path:
    """Find the nix.conf that is meant: the machine's for root, else the user's own.

    Raises:
        UsageError: this user has no home folder.
    """
    if is_root:
        return nix_conf_folder(environment) / "nix.conf"
    if configured := environment.get("XDG_CONFIG_HOME"):
        return Path(configured) / "nix" / "nix.conf"
    if home := environment.get("HOME"):
        return Path(home) / ".config" / "nix" / "nix.conf"
    raise UsageError("use: there is no home folder, and so no nix.conf of this user: name one with --file")


def apply_to_file(path: Path, wanted: Substituter) -> Path | None:
    """Add what is missing to a file, in one step.

    Returns:
        the backup; the path itself where there was no file; None where nothing was missing.

    Raises:
        Error: the file cannot be read or written, is a link, or a line of it contradicts.
    """
    if path.is_symlink():
        raise Error(
            f"{path} is a link to {path.readlink()}: something else generates this file. On NixOS, "
            "nix-darwin or with home-manager, use the module services.nixcache-proxy; otherwise name the "
            "file itself with --file"
        )
    try:
        before = path.read_bytes() if path.exists() else None
        text = (before or b"").decode(errors="surrogateescape")
        content = complete_conf(text, wanted).encode(errors="surrogateescape")
        if content == before:
            return None
        return _replace(path, before, content)
    except OSError as error:
        raise Error(f"{path}: {error.strerror}; run it as a user who may write it, or name --file") from None
    except FormatError as error:
        raise Error(f"{path}: {error}") from None


def _replace(path: Path, before: bytes | None, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate = path.parent / unfinished_name()
    # Private until it has the mode of the file that it replaces, which may hold access tokens.
    descriptor = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if before is None:
                os.fchmod(descriptor, _NEW_FILE_MODE)
            else:
                status = path.stat()
                os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, status.st_mode & _MODE_BITS)
            os.fsync(descriptor)
        if (path.read_bytes() if path.exists() else None) != before:
            raise Error(f"{path}: it was changed just now; run this again")
        backup = _back_up(path) if before is not None else path
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
    RootedPath(path.parent).sync()
    return backup


def _back_up(path: Path) -> Path:
    """Link the file to a new name, so that replacing it keeps the old content."""
    time = format_tag_time(now())
    for number in range(_MAX_BACKUPS):
        backup = path.with_name(f"{path.name}.backup-{time}" + (f"-{number}" if number else ""))
        try:
            backup.hardlink_to(path)
        except FileExistsError:
            continue
        return backup
    raise Error(f"{path}: {_MAX_BACKUPS} backups of this second exist; remove some")

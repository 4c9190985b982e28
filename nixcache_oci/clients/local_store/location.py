"""Finds a store's files, and the store path that a file system path leads to."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from nixcache_oci.errors import UsageError
from nixcache_oci.nix.store_path import StorePath

_LOCAL_KINDS: Final = ("auto", "daemon", "local", "local-overlay", "unix")
_MOST_LINKS: Final = 40


def find_real_store_dir(store: str, store_dir: str, environment: Mapping[str, str]) -> Path:
    """Return the folder of the store objects: the store dir itself, except for a chroot store.

    Args:
        store: Nix's setting, in any spelling: ``auto``, ``/root``, ``local?root=/root``,
            ``local:///root``, ``unix://…``.
        store_dir: such as ``/nix/store``.
        environment: for the home folder, where ``auto`` may put a chroot store.

    Raises:
        UsageError: the store is not on this machine.

    Source: Nix manual, "Store types", local store and local daemon store.
    """
    url = urlsplit(store)
    settings = parse_qs(url.query.replace("+", "%2B"))
    kind = url.scheme or url.path
    is_folder = (not url.scheme and "/" in url.path) or (url.scheme == "local" and url.path != "")
    if kind not in _LOCAL_KINDS and not is_folder:
        raise UsageError(f"store {store}: its files are not on this machine; run this where they are")
    if "real" in settings:
        return Path(settings["real"][-1]).absolute()
    root = settings["root"][-1] if "root" in settings else url.path if is_folder else None
    if kind == "auto" and root is None and not Path(store_dir).exists():
        root = _find_own_root(environment)
    return Path(store_dir) if root is None else Path(root).absolute() / store_dir.lstrip("/")


def find_store_path(path: str, store_dir: str, real_store_dir: Path) -> StorePath:
    """Return the store object that a path is, is inside, or links to.

    Raises:
        UsageError: it does not lead into the store.
        FormatError: what it leads to is not named like a store object.
    """
    for step in follow_links(path):
        for folder in (store_dir, str(real_store_dir)):
            if step.startswith(f"{folder}/"):
                base_name = step.removeprefix(f"{folder}/").split("/")[0]
                return StorePath.from_base_name(base_name, store_dir)
    raise UsageError(
        f"{path}: not in the store {store_dir}; give a store path, or a link to one, such as ./result"
    )


def follow_links(path: str) -> Iterator[str]:
    """Yield the absolute path, then what it becomes with each link that is followed.

    Raises:
        UsageError: a part of it does not exist.
    """
    step: str | None = os.path.abspath(path)  # noqa: PTH100 - pathlib has nothing that only works on the text
    for _ in range(_MOST_LINKS):
        if step is None:
            return
        yield step
        step = _follow_first_link(step)


def _follow_first_link(path: str) -> str | None:
    """Replace the first symbolic link in a path; None without links, UsageError for a missing part."""
    parts = Path(path).parts
    for number in range(2, len(parts) + 1):
        part = Path(*parts[:number])
        try:
            is_link = stat.S_ISLNK(part.lstat().st_mode)
            target = part.readlink() if is_link else None
        except OSError as error:
            # As nix build writes an output of a flake.
            hint = "; publish takes a flake, and --attr narrows it to an output" if "#" in path else ""
            raise UsageError(f"{path}: {error.strerror}{hint}") from None
        if target is not None:
            return os.path.abspath(part.parent.joinpath(target, *parts[number:]))  # noqa: PTH100 - as above
    return None


def _find_own_root(environment: Mapping[str, str]) -> str | None:
    """Find the chroot store that Nix makes for a user without rights to /nix and without a daemon."""
    data = environment.get("XDG_DATA_HOME") or f"{environment.get('HOME', '')}/.local/share"
    root = f"{data}/nix/root"
    return root if Path(root).is_dir() else None

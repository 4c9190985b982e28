"""The nix.conf files of this machine, as Nix finds them; files that they include are left out.

Source: Nix manual, "nix.conf".
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nix_conf import Setting, parse_conf

_NIX_CONF_DIR: Final = "/etc/nix"
_MOST_BYTES: Final = 1024 * 1024


def nix_conf_folder(environment: Mapping[str, str]) -> Path:
    """Tell where the machine's own nix.conf is."""
    return Path(environment.get("NIX_CONF_DIR") or _NIX_CONF_DIR)


def read_nix_conf(environment: Mapping[str, str], *, with_users: bool) -> list[Setting]:
    """Read the settings of the machine, then the user's, then those of ``NIX_CONFIG``: the last one counts.

    What cannot be read says nothing; what is malformed, Nix itself refuses.

    Args:
        environment: of the process; names the files.
        with_users: whether the user's own files count; Nix takes some settings from trusted users only.
    """
    files = [nix_conf_folder(environment) / "nix.conf", *(_user_files(environment) if with_users else ())]
    settings: list[Setting] = []
    for text in (*map(_read, files), environment.get("NIX_CONFIG", "")):
        with suppress(FormatError):
            settings += parse_conf(text)
    return settings


def _user_files(environment: Mapping[str, str]) -> Iterator[Path]:
    named = environment.get("NIX_USER_CONF_FILES")
    if named is not None:
        # The first of them wins over the others, and so has to be read last.
        yield from (Path(path) for path in reversed(named.split(":")) if path)
        return
    home = environment.get("HOME")
    folder = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if folder:
        yield Path(folder) / "nix" / "nix.conf"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""

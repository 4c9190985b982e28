"""Nix's settings: the effective ones, those of the nix.conf files, and what they imply.

A daemon accepts substituters and keys only from users whom its own settings trust. Builds are for the systems
that were asked for, and for those that this machine and its remote builders can build. Source: Nix manual,
"nix.conf", trusted-users, trusted-substituters, system, extra-platforms and builders; "Remote builds", the
machines file.
"""

import asyncio
import grp
import os
import pwd
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.clients.local_store.nix_program import Nix, Version
from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nix_conf import Setting, parse_conf
from nixcache_oci.oci.document import get_list, get_text, parse_document, parse_object, within

SETTINGS_COMMAND: Final = "nix config show"

_MOST_BYTES: Final = 4 * 1024 * 1024
_RENAMED: Final = (2, 20, 0)
_STATE_DIR: Final = "/nix/var/nix"
_NIX_CONF_DIR: Final = "/etc/nix"
_MOST_FILE_BYTES: Final = 1024 * 1024
_ANYWHERE: Final = (None, "builtin")
_MACHINE_END: Final = re.compile(r"[\n;]")


@dataclass(frozen=True, slots=True)
class NixSettings:
    """The settings that decide whether a substituter is used."""

    substituters: tuple[str, ...]  # URLs
    trusted_public_keys: tuple[str, ...]  # ``name:base64``
    trusted_substituters: tuple[str, ...]  # URLs that any user may name
    trusted_users: tuple[str, ...]  # names, and groups as ``@name``; ``*`` for all
    fallback: bool  # whether a failed download is built instead
    substitute: bool  # whether anything is downloaded at all
    require_sigs: bool  # whether unsigned paths are refused
    store: str  # where paths go, such as ``auto`` or ``daemon``

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Self:
        """Read them from what Nix prints; FormatError if one is missing, or of the wrong type."""

        def texts(name: str) -> tuple[str, ...]:
            with within(name):
                return tuple(str(one) for one in get_list(parse_object(document.get(name)), "value"))

        def is_on(name: str) -> bool:
            with within(name):
                return parse_object(document.get(name)).get("value") is True

        with within(SETTINGS_COMMAND):
            return cls(
                texts("substituters"),
                texts("trusted-public-keys"),
                texts("trusted-substituters"),
                texts("trusted-users"),
                fallback=is_on("fallback"),
                substitute=is_on("substitute"),
                require_sigs=is_on("require-sigs"),
                store=get_text(parse_object(document.get("store")), "value"),
            )


async def ask_settings(nix: Nix, version: Version) -> dict[str, object]:
    """Ask for all settings as Nix prints them, by name; FormatError if it printed something else.

    Raises StoreError if Nix refused: a line of nix.conf is wrong.
    """
    command = ["config", "show"] if version >= _RENAMED else ["show-config"]
    output = await nix.ask(*command, "--json")
    with within(SETTINGS_COMMAND):
        return parse_document(output, "its settings", _MOST_BYTES)


async def read_settings(nix: Nix) -> NixSettings:
    """Ask for the settings of this user; errors are those of ``ask_settings`` and ``require_version``."""
    return NixSettings.parse(await ask_settings(nix, await nix.require_version()))


def system_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Remove what a user adds to the settings: the rest is what a daemon sees."""
    kept = {name: value for name, value in environment.items() if name != "NIX_CONFIG"}
    return {**kept, "NIX_USER_CONF_FILES": ""}


def uses_daemon(store: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a daemon does the work, by Nix's own rule."""
    if store != "auto":
        return store == "daemon" or store.startswith("unix:")
    state = Path(environment.get("NIX_STATE_DIR") or _STATE_DIR)
    return not os.access(state, os.R_OK | os.W_OK) and (state / "daemon-socket" / "socket").exists()


def current_user() -> tuple[str, frozenset[str]]:
    """Return the current user's name and groups."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # in a container, the user id may have no name
        name = str(os.geteuid())
    groups = {_group_name(number) for number in (*os.getgroups(), os.getegid())}
    return name, frozenset(groups)


def is_trusted(user: str, groups: Collection[str], trusted_users: Collection[str]) -> bool:
    """Tell whether a daemon accepts this user's substituters and keys."""
    return (
        "*" in trusted_users or user in trusted_users or any(f"@{name}" in trusted_users for name in groups)
    )


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def nix_conf_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of the system's nix.conf."""
    return Path(environment.get("NIX_CONF_DIR") or _NIX_CONF_DIR)


def read_nix_conf(environment: Mapping[str, str], *, with_users: bool) -> list[Setting]:
    """Read the system's settings, then the user's, then ``NIX_CONFIG``: the last one wins.

    Unreadable and malformed files are skipped; Nix itself refuses malformed ones. Nix takes some settings
    from trusted users only: then ``with_users`` is false.
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
        # The first file wins, so it is read last.
        yield from (Path(path) for path in reversed(named.split(":")) if path)
        return
    home = environment.get("HOME")
    folder = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if folder:
        yield Path(folder) / "nix" / "nix.conf"


def _read(path: Path) -> str:
    try:
        return read_small(path, _MOST_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _read_machines(path: str) -> str:
    """Read a file of machines; a missing one counts as empty, as in Nix."""
    with suppress(OSError):
        if Path(path).is_file():
            return _read(Path(path))
    return ""


@dataclass(frozen=True, slots=True)
class Systems:
    """The systems to build for."""

    asked: tuple[str, ...]  # named by the user, or this machine's own: their outputs must exist
    # All that builds are tried for: these, and what Nix can build here or on remote builders.
    built: frozenset[str]
    # Whether the user named them: then packages and configurations for others are left out.
    is_named: bool = False

    def can_build(self, system: str | None, *, is_configuration: bool = False) -> bool:
        """Tell whether to build a derivation for this system; None is one that does not say."""
        chosen = self.asked if self.is_named and is_configuration else self.built
        return system in _ANYWHERE or system in chosen

    def can_build_os(self, name: str) -> bool:
        """Tell whether to build configurations for an operating system, such as ``darwin``."""
        chosen = self.asked if self.is_named else self.built
        return any(system.endswith(f"-{name}") for system in chosen)

    def choose(self, offered: Sequence[str]) -> list[str]:
        """Choose from the systems that a flake has packages for, those asked for first."""
        more = () if self.is_named else sorted(self.built.difference(self.asked))
        return [system for system in (*self.asked, *more) if system in offered]


async def read_systems(nix: Nix, named: Sequence[str] = ()) -> Systems:
    """Ask Nix which systems it builds for, unless the user named them; errors as of ``read_settings``."""
    settings = await ask_settings(nix, await nix.require_version())

    def field(name: str) -> dict[str, object]:
        return parse_object(settings.get(name))

    with within(SETTINGS_COMMAND):
        own = get_text(field("system"), "value")
        extra = map(str, get_list(field("extra-platforms"), "value"))
        builders = get_text(field("builders"), "value")
    remote = await asyncio.to_thread(lambda: frozenset(find_remote(builders, own, _read_machines)))
    asked = tuple(dict.fromkeys(named)) or (own,)
    return Systems(asked, remote.union(asked, [own], extra), is_named=bool(named))


def find_remote(
    builders: str, own: str, read: Callable[[str], str], reading: tuple[str, ...] = ()
) -> Iterator[str]:
    """Find the systems of remote builders.

    Args:
        builders: Nix's setting: machines, separated by semicolons or lines, or ``@`` and a file of them.
        own: system of a machine that does not say.
        read: returns a file's text, empty for a missing one.
        reading: files that include this text: none may include itself.
    """
    for entry in _MACHINE_END.split(builders):
        text = entry.split("#")[0].strip()
        if text.startswith("@"):
            path = text[1:].strip()
            if path not in reading:
                yield from find_remote(read(path), own, read, (*reading, path))
        elif words := text.split():
            systems = words[1] if len(words) > 1 else "-"
            yield from [own] if systems == "-" else filter(None, systems.split(","))

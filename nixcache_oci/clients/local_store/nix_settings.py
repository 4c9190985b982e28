"""Nix's effective settings, and whether a daemon obeys this user's.

A daemon accepts substituters and keys only from users whom its own settings trust. Source: Nix manual,
"nix.conf", trusted-users and trusted-substituters.
"""

import grp
import os
import pwd
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.clients.local_store.nix_program import Nix, Version
from nixcache_oci.oci.document import get_list, get_text, parse_document, parse_object, within

SETTINGS_COMMAND: Final = "nix config show"

_MOST_BYTES: Final = 4 * 1024 * 1024
_RENAMED: Final = (2, 20, 0)
_STATE_DIR: Final = "/nix/var/nix"


@dataclass(frozen=True, slots=True)
class NixSettings:
    """The settings that decide whether a substituter is used.

    Attributes:
        substituters: URLs.
        trusted_public_keys: ``name:base64``.
        trusted_substituters: URLs that any user may name.
        trusted_users: names, and groups as ``@name``; ``*`` for all.
        fallback: whether a failed download is built instead.
        substitute: whether anything is downloaded at all.
        require_sigs: whether unsigned paths are refused.
        store: where paths go, such as ``auto`` or ``daemon``.
    """

    substituters: tuple[str, ...]
    trusted_public_keys: tuple[str, ...]
    trusted_substituters: tuple[str, ...]
    trusted_users: tuple[str, ...]
    fallback: bool
    substitute: bool
    require_sigs: bool
    store: str

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Self:
        """Read them from what Nix prints.

        Raises:
            FormatError: one is missing, or of the wrong type.
        """

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
    """Ask for all settings as Nix prints them, by name.

    Raises:
        StoreError: Nix refused: a line of nix.conf is wrong.
        FormatError: it printed something else.
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

"""Which systems are built for, such as ``x86_64-linux``: what was asked for, and what this machine builds.

Source: Nix manual, "nix.conf", system, extra-platforms and builders; "Remote builds", the machines file.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.nix_settings import SETTINGS_COMMAND, ask_settings
from nixcache_oci.oci.document import get_list, get_text, parse_object, within

_ANYWHERE: Final = (None, "builtin")
_MOST_BYTES: Final = 1024 * 1024
_LINE_END: Final = re.compile(r"[\n;]")


@dataclass(frozen=True, slots=True)
class Systems:
    """What is built for.

    Attributes:
        asked: whose outputs have to be there: named by the user, or this machine's own.
        built: all that builds are tried for: these, and what Nix builds here or on its remote builders.
        is_named: whether the user named them; then there are no packages and configurations for others.
    """

    asked: tuple[str, ...]
    built: frozenset[str]
    is_named: bool = False

    def can_build(self, system: str | None, *, is_configuration: bool = False) -> bool:
        """Tell whether a derivation for this system is tried; None is one that does not say."""
        chosen = self.asked if self.is_named and is_configuration else self.built
        return system in _ANYWHERE or system in chosen

    def can_build_os(self, name: str) -> bool:
        """Tell whether configurations are tried for an operating system, such as ``darwin``."""
        chosen = self.asked if self.is_named else self.built
        return any(system.endswith(f"-{name}") for system in chosen)

    def choose(self, offered: Sequence[str]) -> list[str]:
        """Choose of the systems that a flake has packages for: those asked for first."""
        more = () if self.is_named else sorted(self.built.difference(self.asked))
        return [system for system in (*self.asked, *more) if system in offered]


async def read_systems(nix: Nix, named: Sequence[str] = ()) -> Systems:
    """Ask Nix what it builds for.

    Args:
        nix: is asked.
        named: by the user; empty for this machine's own.

    Raises:
        UsageError: there is no Nix, or it is too old.
        StoreError: it refused: a line of nix.conf is wrong.
        FormatError: it printed something else.
    """
    settings = await ask_settings(nix, await nix.require_version())

    def field(name: str) -> dict[str, object]:
        return parse_object(settings.get(name))

    with within(SETTINGS_COMMAND):
        own = get_text(field("system"), "value")
        extra = map(str, get_list(field("extra-platforms"), "value"))
        builders = get_text(field("builders"), "value")
    remote = await asyncio.to_thread(lambda: frozenset(find_remote(builders, own, _read)))
    asked = tuple(dict.fromkeys(named)) or (own,)
    return Systems(asked, remote.union(asked, [own], extra), is_named=bool(named))


def find_remote(
    builders: str, own: str, read: Callable[[str], str], reading: tuple[str, ...] = ()
) -> Iterator[str]:
    """Find the systems of remote builders.

    Args:
        builders: Nix's setting: machines, separated by semicolons or lines, or ``@`` and a file of such.
        own: what a machine builds for that does not say.
        read: gives a file's text, empty where there is none.
        reading: the files that this text is out of: none is read inside itself.
    """
    for entry in _LINE_END.split(builders):
        text = entry.split("#")[0].strip()
        if text.startswith("@"):
            path = text[1:].strip()
            if path not in reading:
                yield from find_remote(read(path), own, read, (*reading, path))
        elif words := text.split():
            systems = words[1] if len(words) > 1 else "-"
            yield from [own] if systems == "-" else filter(None, systems.split(","))


def _read(path: str) -> str:
    """Read a file of machines; Nix, too, takes one that is not there for an empty one."""
    with suppress(OSError):
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace")
    return ""

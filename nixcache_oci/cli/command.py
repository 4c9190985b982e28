"""Commands of this program that work as printed: found by name or path, and with the flags of this run."""

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from nixcache_oci.cli.main import PROGRAM, VERBS, load_verb
from nixcache_oci.settings.values import Values, without_users
from nixcache_oci.settings.variables import ALL_VARIABLES

_AS_ROOT: Final = "as root: "
# With the flags that follow and take no value.
_COMMAND = re.compile(
    rf"(?P<as_root>{_AS_ROOT})?\b{PROGRAM} (?P<verb>{'|'.join(VERBS)})\b"
    r"(?P<words>(?: --[a-z-]+(?= --|[;,]|$))*)"
)
_FLAG = re.compile(r"--[a-z-]+")


def own_program(environment: Mapping[str, str]) -> str:
    """Write how to call this program in the user's shell: by name where that finds it, else by its path."""
    found = shutil.which(PROGRAM, path=environment.get("PATH"))
    own = _own_path()
    if found is not None and (own is None or Path(found).samefile(own)):
        return PROGRAM
    return _by_path(own)


def complete_commands(text: str, values: Values) -> str:
    """Add the settings of this run to every command ``nixcache-oci VERB`` in a remedy.

    Flags of this run follow where the verb has them. After ``as root:``, whose environment is another, the
    program's path replaces its name, and settings of the environment become flags.
    """

    def complete(named: re.Match[str]) -> str:
        is_root = named["as_root"] is not None
        program = _by_path(_own_path()) if is_root else own_program(values.environment)
        flags = _flags(named["verb"], values, with_environment=is_root)
        command = " ".join((f"{program} {named['verb']}{named['words']}", *flags))
        return f"{_AS_ROOT if is_root else ''}{command}"

    return _COMMAND.sub(complete, text)


def _own_path() -> Path | None:
    """Find the program that runs, or the one beside this Python, where that was told to run a module."""
    started = Path(sys.argv[0])
    candidates = [started] if started.name == PROGRAM else []
    candidates.append(Path(sys.executable).with_name(PROGRAM))
    return next((one.absolute() for one in candidates if one.is_file()), None)


def _by_path(own: Path | None) -> str:
    return f"{shlex.quote(sys.executable)} -m nixcache_oci" if own is None else shlex.quote(str(own))


def _flags(verb: str, values: Values, *, with_environment: bool) -> list[str]:
    flags: list[str] = []
    for variable in ALL_VARIABLES:
        text = values.text(variable, with_environment=with_environment)
        if variable.flag is not None and variable.flag in _taken(verb) and text is not None:
            flags += [variable.flag, shlex.quote(without_users(text))]
    return flags


@cache
def _taken(verb: str) -> frozenset[str]:
    """Find the flags that a verb has, by its own description."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    load_verb(verb).add_arguments(parser)
    return frozenset(_FLAG.findall(parser.format_usage()))

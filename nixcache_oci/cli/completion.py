"""The verb ``completion``: what teaches a shell the verbs and their flags, made from the parsers."""

import argparse
from collections.abc import Iterator
from typing import Final

from nixcache_oci.cli.console import say_generated
from nixcache_oci.cli.main import PROGRAM, VERBS, load_verb, make_parser
from nixcache_oci.cli.verb import DONE
from nixcache_oci.errors import Error
from nixcache_oci.settings.values import Values

SHELLS: Final = ("bash", "zsh", "fish")

# By what stands for a value in help: where a file, or a folder, is meant.
_FILES: Final = frozenset({"FILE", "PATH", "PATH|HASH|ATTR", "FLAKE"})
_FOLDERS: Final = frozenset({"DIR", "FOLDER", "URL|DIR"})

DESCRIPTION = (
    "Print what makes a shell complete verbs, flags and files. It belongs where the shell looks for "
    "such files: the manual page of bash, zsh or fish tells."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(values: Values) -> int:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 -- installed to package this
    except ImportError:
        raise missing("completion", "shtab") from None
    parser = make_whole_parser()
    for one in parsers_of(parser):
        # Beside its name, a menu has room for a few words.
        one.description = VERBS.get(one.prog.removeprefix(f"{PROGRAM} "), one.description)
    for action in (action for one in parsers_of(parser) for action in one._actions):  # noqa: SLF001  as below
        if action.metavar in _FILES | _FOLDERS:
            kind = shtab.FILE if action.metavar in _FILES else shtab.DIRECTORY
            action.complete = kind  # type: ignore[attr-defined]
    say_generated(shtab.complete(parser, values.flags.shell))
    return DONE


def make_whole_parser() -> argparse.ArgumentParser:
    """Describe the command line with every verb."""
    return make_parser({name: load_verb(name) for name in VERBS})


def missing(verb: str, package: str) -> Error:
    """Say what has to be installed for a verb that few need."""
    return Error(f"{verb}: the Python package {package} is missing; '{PROGRAM}[completion]' installs it")


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Give a parser, those of its verbs, and those of their actions."""
    yield parser
    for action in parser._actions:  # noqa: SLF001  argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  as above
            for below in action.choices.values():
                yield from parsers_of(below)

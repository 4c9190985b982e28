"""What a module of this package must have to be a verb of the program."""

import argparse
from collections.abc import MutableMapping
from typing import Final, Protocol

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2


class SubParsers(Protocol):
    """Where a verb adds its parser; argparse's own class for this is private."""

    def add_parser(self, name: str, *, description: str, allow_abbrev: bool) -> argparse.ArgumentParser:
        """Make the parser of one verb."""


class Verb(Protocol):
    """A module such as ``proxy``."""

    def add_parser(self, subparsers: SubParsers) -> None:
        """Describe the verb's arguments."""

    def run(self, arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
        """Do it.

        Args:
            arguments: as parsed by what ``add_parser`` described; ``quiet`` tells whether only results,
                warnings and errors are shown.
            environment: all variables of this process, which the verb may change.

        Returns:
            the exit status: 0 done, 1 failed, 2 wrong usage.

        Raises:
            Error: becomes one line on standard error, and 1, or 2 for a UsageError.
        """

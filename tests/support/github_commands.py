"""Finds what GitHub's runner would obey in a step's log.

Stricter than nektos/act, for which only a line feed ends a line, and both forms begin one.
Source: GitHub's documentation, "Workflow commands", and the runner's own parser.
"""

import re
from typing import Final

_COMMAND: Final = re.compile(r"::(?P<name>[^\s:]+)(?: [^:]*)?::(?P<value>.*)")
_OLD_COMMAND: Final = re.compile(r"##\[(?P<name>[^\s\]]+)(?: [^\]]*)?\](?P<value>.*)")


def find_commands(log: str) -> list[tuple[str, str]]:
    """Find the commands: name and value of each.

    A carriage return ends a line, too; one form begins its line, the other may stand anywhere. Nothing counts
    between ``stop-commands`` and the word that it was given, in either form and whatever its case.
    """
    found: list[tuple[str, str]] = []
    word: str | None = None
    for line in re.split(r"\r\n|\r|\n", log):
        match = _COMMAND.match(line.lstrip()) or _OLD_COMMAND.search(line)
        if match is None:
            continue
        name, value = match["name"], match["value"]
        if word is not None:
            word = None if name.casefold() == word.casefold() else word
        elif name == "stop-commands":
            word = value
        else:
            found.append((name, value))
    return found

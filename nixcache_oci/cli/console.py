"""What the program prints: text, which neither a terminal nor GitHub takes for a command.

Names, errors and reasons come from flakes, registries and other people's stores. All of it goes through here.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Final, TextIO

from nixcache_oci.cli.log import escape_unprintable

_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_NO_COLOUR: Final = "\x1b[0m"


def as_line(text: str) -> str:
    """Make one line of a text: control characters are shown, and no workflow command begins it."""
    line = escape_unprintable(text)
    start = line.lstrip()
    return f"{line[: len(line) - len(start)]}\\x3a{start[1:]}" if start.startswith("::") else line


def say(*lines: str) -> None:
    """Print results, each as one line, at once."""
    _print_lines(lines, sys.stdout)


def complain(*lines: str) -> None:
    """Print what is no result, each as one line."""
    _print_lines(lines, sys.stderr)


def ask(question: str) -> str:
    """Put a question on the terminal, and read the line that answers it."""
    _print(as_line(question), sys.stderr, end=" ")
    return sys.stdin.readline().strip()


def say_json(document: Mapping[str, object]) -> None:
    """Print a document; what JSON itself leaves as it is, is escaped in JSON's way."""
    say_json_text(json.dumps(document, indent=2))


def say_json_text(text: str) -> None:
    """Print a document that is written already, in ASCII, on as many lines as it has."""
    _print(text.replace("\x7f", "\\u007f").replace("##[", "#\\u0023["), sys.stdout)


def say_generated(text: str) -> None:
    """Print what is made of this program alone, on as many lines as it has."""
    _print(text.rstrip("\n"), sys.stdout)


def show_foreign(line: str) -> None:
    """Show a line of a program that was started; its colours only on a terminal that is to have some."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        shown = "".join(
            part if _COLOUR.fullmatch(part) else escape_controls(part) for part in _split_colours(line)
        )
        _print(f"{shown}{_NO_COLOUR if _COLOUR.search(shown) else ''}", sys.stderr)
    else:
        _print(escape_controls(without_colours(line)), sys.stderr)


def without_colours(line: str) -> str:
    """Take the colours out of a line."""
    return _COLOUR.sub("", line)


def escape_controls(line: str) -> str:
    r"""Show what a terminal would obey, as ``\x1b``; other people's letters and tabs stay what they are."""
    return _CONTROLS.sub(lambda found: escape_unprintable(found[0]), line)


def _split_colours(line: str) -> list[str]:
    return re.split(f"({_COLOUR.pattern})", line)


def _print_lines(lines: Iterable[str], stream: TextIO) -> None:
    if lines:
        _print("\n".join(map(as_line, lines)), stream)


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    print(text, file=stream, end=end, flush=True)

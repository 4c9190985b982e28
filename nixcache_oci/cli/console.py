"""What the program prints: text, which neither a terminal nor GitHub takes for a command.

Names, errors and reasons come from flakes, registries and other people's stores. All of it goes through here.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TextIO

from nixcache_oci.cli.log import escape_unprintable

_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_NO_COLOUR: Final = "\x1b[0m"


def as_line(text: str) -> str:
    """Make one line of a text: control characters become visible, and no workflow command begins it."""
    line = escape_unprintable(text)
    start = line.lstrip()
    return f"{line[: len(line) - len(start)]}\\x3a{start[1:]}" if start.startswith("::") else line


def say(*lines: str) -> None:
    """Print results, each as one line."""
    _print_lines(lines, sys.stdout)


def complain(*lines: str) -> None:
    """Print messages on standard error, each as one line."""
    _print_lines(lines, sys.stderr)


def ask(question: str) -> str:
    """Ask a question on the terminal, and return the answer."""
    _print(as_line(question), sys.stderr, end=" ")
    return sys.stdin.readline().strip()


def say_json(document: Mapping[str, object]) -> None:
    """Print a document, escaped in JSON's way even where JSON does not require it."""
    say_json_text(json.dumps(document, indent=2))


def say_json_text(text: str) -> None:
    """Print a document that is JSON in ASCII already."""
    _print(text.replace("\x7f", "\\u007f").replace("##[", "#\\u0023["), sys.stdout)


def say_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of equally many cells, in aligned columns."""
    clean = [tuple(map(escape_unprintable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for row in clean:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def say_generated(text: str) -> None:
    """Print lines that this program made of nothing foreign."""
    _print(text.rstrip("\n"), sys.stdout)


def show_foreign(line: str) -> None:
    """Show a line of another program; its colours only on a terminal that wants colours."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        parts = re.split(f"({_COLOUR.pattern})", line)
        shown = "".join(part if _COLOUR.fullmatch(part) else escape_controls(part) for part in parts)
        _print(f"{shown}{_NO_COLOUR if _COLOUR.search(shown) else ''}", sys.stderr)
    else:
        _print(escape_controls(without_colours(line)), sys.stderr)


def without_colours(line: str) -> str:
    """Remove the colours from a line."""
    return _COLOUR.sub("", line)


def escape_controls(line: str) -> str:
    r"""Make control characters visible, as ``\x1b``; letters of all scripts and tabs stay as they are."""
    return _CONTROLS.sub(lambda found: escape_unprintable(found[0]), line)


def _print_lines(lines: Iterable[str], stream: TextIO) -> None:
    if lines:
        _print("\n".join(map(as_line, lines)), stream)


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    print(text, file=stream, end=end, flush=True)

"""How findings look on a terminal: a mark, what was found, and what to do about it."""

from collections.abc import Sequence
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.maintenance.checks.finding import Finding, Level
from nixcache_oci.wording import counted

_MARKS: Final = {Level.GOOD: "✓", Level.WARNING: "!", Level.ERROR: "✗", Level.SKIPPED: "-"}
_ASCII_MARKS: Final = {Level.GOOD: "+", Level.WARNING: "!", Level.ERROR: "x", Level.SKIPPED: "-"}
_STYLES: Final = {
    Level.GOOD: "green",
    Level.WARNING: "yellow",
    Level.ERROR: "bold red",
    Level.SKIPPED: "dim",
}


def print_findings(head: str, findings: Sequence[Finding], stream: TextIO) -> None:
    """Write a line for each finding, another for its remedy, and one that counts them.

    On a terminal the mark has a colour, unless NO_COLOR or TERM=dumb says otherwise.
    """
    marks = _MARKS if _can_show("".join(_MARKS.values()), stream) else _ASCII_MARKS
    console = Console(file=stream, force_jupyter=False, highlight=False, soft_wrap=True)

    def show(text: str, mark: str = "", style: str = "") -> None:
        line = text if _can_show(text, stream) else ascii(text)[1:-1]
        console.print(Text.assemble((mark, style), line))

    show(head)
    for finding in findings:
        text = f" {finding.check}: {escape_unprintable(finding.text)}"
        show(text, marks[finding.level], _STYLES[finding.level])
        if finding.remedy:
            show(f"    {escape_unprintable(finding.remedy)}")
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    show(f"{counted(count[Level.ERROR], 'error')}, {counted(count[Level.WARNING], 'warning')}")


def _can_show(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True

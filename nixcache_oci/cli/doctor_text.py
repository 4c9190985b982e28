"""How findings look on a terminal: a mark, what was found, and what to do about it."""

from collections.abc import Sequence
from typing import Final, TextIO

from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.maintenance.checks.finding import Finding, Level

_MARKS: Final = {Level.GOOD: "✓", Level.WARNING: "!", Level.ERROR: "✗", Level.SKIPPED: "-"}
_ASCII_MARKS: Final = {Level.GOOD: "+", Level.WARNING: "!", Level.ERROR: "x", Level.SKIPPED: "-"}


def print_findings(head: str, findings: Sequence[Finding], stream: TextIO) -> None:
    """Write a line for each finding, another for its remedy, and one that counts them."""
    marks = _MARKS if _can_show("".join(_MARKS.values()), stream) else _ASCII_MARKS
    lines = [head]
    for finding in findings:
        lines.append(f"{marks[finding.level]} {finding.check}: {escape_unprintable(finding.text)}")
        if finding.remedy:
            lines.append(f"    {escape_unprintable(finding.remedy)}")
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    lines.append(f"{count[Level.ERROR]} wrong, {count[Level.WARNING]} to look at")
    stream.writelines(f"{line if _can_show(line, stream) else ascii(line)[1:-1]}\n" for line in lines)


def _can_show(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True

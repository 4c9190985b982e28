"""What a check found: good, worth a look, wrong, or not looked at because something before it is wrong."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    GOOD = "good"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        check: what was looked at.
        level: how bad it is.
        text: what was found.
        remedy: what to do about it, or an empty string.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""


def good(check: str, text: str) -> Finding:
    """Make a finding of what is as it should be."""
    return Finding(check, Level.GOOD, text)


def warning(check: str, text: str, remedy: str = "") -> Finding:
    """Make a finding of what works, and may surprise."""
    return Finding(check, Level.WARNING, text, remedy)


def wrong(check: str, text: str, remedy: str = "") -> Finding:
    """Make a finding of what keeps the cache from working."""
    return Finding(check, Level.ERROR, text, remedy)


def skipped(checks: Iterable[str], reason: str) -> list[Finding]:
    """Make findings of what could not be looked at."""
    return [Finding(check, Level.SKIPPED, f"skipped: {reason}") for check in checks]


def has_error(findings: Iterable[Finding]) -> bool:
    """Tell whether something is wrong."""
    return any(finding.level is Level.ERROR for finding in findings)

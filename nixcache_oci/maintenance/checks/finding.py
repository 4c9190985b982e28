"""The result of a check: good, a warning, an error, or skipped because of an earlier error."""

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
    """One line of a diagnosis."""

    check: str  # name of what was checked
    level: Level
    text: str
    remedy: str = ""  # what to do about it, or an empty string


def good(check: str, text: str) -> Finding:
    """Make a finding of what is right."""
    return Finding(check, Level.GOOD, text)


def warning(check: str, text: str, remedy: str = "") -> Finding:
    """Make a finding of what works but may surprise."""
    return Finding(check, Level.WARNING, text, remedy)


def wrong(check: str, text: str, remedy: str = "") -> Finding:
    """Make a finding of what breaks the cache."""
    return Finding(check, Level.ERROR, text, remedy)


def skipped(checks: Iterable[str], reason: str) -> list[Finding]:
    """Make findings of what could not be checked."""
    return [Finding(check, Level.SKIPPED, f"skipped: {reason}") for check in checks]


def has_error(findings: Iterable[Finding]) -> bool:
    """Tell whether one of them is an error."""
    return any(finding.level is Level.ERROR for finding in findings)

"""Challenges: which credentials a server wants, in ``WWW-Authenticate``.

Commas separate challenges as well as their parameters. So the text is split at commas outside quoted strings;
then ``key=value`` belongs to the challenge before it, and anything else starts a new one. Malformed pieces
are skipped, since other challenges may serve; they end their challenge, so that no parameter goes to the
wrong one.

Source: RFC 9110, sections 11.2 to 11.6.1 and 5.6.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PIECE = re.compile(rf'(?:{_QUOTED}|[^",])+|".*', re.DOTALL)
# Wider than the grammar: some servers omit the quotes around a URL.
_PARAMETER = re.compile(rf'({_NAME})[ \t]*=[ \t]*({_QUOTED}|[^ \t",=][^ \t",]*)', re.DOTALL)
_START = re.compile(rf"({_NAME})(?:[ \t]+(.+))?", re.DOTALL)
_TOKEN68 = re.compile(r"[0-9A-Za-z._~+/-]+=*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One accepted authentication scheme."""

    scheme: str  # in lower case, such as ``bearer``
    # By name in lower case, unquoted; a token68 is dropped, because no scheme used here has one.
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(header_values: Iterable[str]) -> tuple[Challenge, ...]:
    """Parse the values of all ``WWW-Authenticate`` headers of a response, in order; never fails."""
    challenges: list[Challenge] = []
    for value in header_values:
        challenges += _parse_header(value)
    return tuple(challenges)


def _parse_header(value: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    current: Challenge | None = None
    for match in _PIECE.finditer(value):
        piece = match[0].strip(" \t")
        if not piece:
            continue
        if parameter := _PARAMETER.fullmatch(piece):
            if current is not None:
                _add(current, parameter)
            continue
        current = _parse_start(piece)
        if current is not None:
            challenges.append(current)
    return challenges


def _parse_start(piece: str) -> Challenge | None:
    start = _START.fullmatch(piece)
    if start is None:
        return None
    challenge = Challenge(start[1].lower())
    rest = start[2]
    if rest is None or _TOKEN68.fullmatch(rest):
        return challenge
    parameter = _PARAMETER.fullmatch(rest)
    if parameter is None:
        return None
    _add(challenge, parameter)
    return challenge


def _add(challenge: Challenge, parameter: re.Match[str]) -> None:
    name, value = parameter[1].lower(), parameter[2]
    if value.startswith('"'):
        value = _ESCAPED.sub(r"\1", value[1:-1])
    challenge.parameters.setdefault(name, value)

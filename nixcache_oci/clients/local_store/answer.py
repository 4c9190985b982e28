"""Parses Nix's answers to the expressions of ``expression``, and its errors. No I/O."""

import json
import re
from collections import deque
from typing import Final

from nixcache_oci.clients.local_store.program import Ended, OnLine, without_colours
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import StorePath

NOTHING: Final = "null"
SET: Final = "set"
MOST_SHOWN: Final = 80  # characters of a bad name

_MOST_REQUIRED: Final = 20
_MISSING: Final = "does not provide attribute"
# 2.8 says it in the error's own line, newer versions on a separate one.
_REQUIRED: Final = re.compile(r"error: a '([^']+)' with features|^\s*Required system: '([^']+)'")


class Listener:
    """Passes lines on, and notes why something cannot be evaluated.

    The error that a flake lacks an attribute is not passed on: the attribute is optional.
    """

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self.is_missing = False
        self.required: deque[str] = deque(maxlen=_MOST_REQUIRED)

    def __call__(self, line: str) -> None:
        """Take one line of standard error."""
        self.is_missing = self.is_missing or _MISSING in line
        if not self.is_missing:
            self._on_line(line)
        found = _REQUIRED.search(without_colours(line))
        if found is not None:
            self.required.append((found[1] or found[2])[:MOST_SHOWN])


def read_answer(ended: Ended) -> object:
    """Read what ``nix eval`` printed; bytes that are not UTF-8, which Nix allows, become lone surrogates.

    Raises:
        FormatError: it is nested too deeply, or no JSON.
    """
    try:
        return json.loads(ended.stdout.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"what Nix tells cannot be read: {error}") from None


AttributeValue = tuple[StorePath, str | None] | list[str] | str
"""A derivation, with its system; the names in a set of further attributes; the type of anything else."""


def parse_answer(value: object) -> AttributeValue:
    """Read the answer to ``describe_one``, in which a flake may put anything.

    Raises:
        FormatError: the derivation's path or system is malformed.
    """
    match value:
        case ["derivation", drv_path, str() | None as system]:
            try:
                path = StorePath.parse(str(drv_path))
            except FormatError as error:
                raise FormatError(f"its drvPath: {error}") from None
            if not path.name.endswith(".drv"):
                raise FormatError(f"its drvPath: {path} is no derivation")
            return path, system
        case [str(kind), [*names]] if kind == SET:
            return [name for name in names if isinstance(name, str)]
        case [str(kind)]:
            return kind
    raise FormatError("its system is no text")


def describe_kind(kind: str) -> str:
    """Say that something of another type is no derivation."""
    article = "an" if kind.startswith("int") else "a"
    return f"it is {article} {kind}, not a derivation" if kind != NOTHING else "it is not a derivation"

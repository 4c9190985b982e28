"""What Nix answers to the expressions that are asked, and what it says of why it does not. No I/O."""

import json
import re
from collections import deque
from typing import Final

from nixcache_oci.clients.local_store.program import Ended, OnLine, without_colours
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import StorePath

NOTHING: Final = "null"
SET: Final = "set"
MOST_SHOWN: Final = 80  # letters of a name that something is wrong with

_MOST_REQUIRED: Final = 20
_MISSING: Final = "does not provide attribute"
# 2.8 tells it in the line of the error, newer versions on a line of its own.
_REQUIRED: Final = re.compile(r"error: a '([^']+)' with features|^\s*Required system: '([^']+)'")


class Listener:
    """Passes lines on, and notes what they tell of why something cannot be evaluated.

    The complaint that a flake lacks an attribute is not passed on: it need not have it.
    """

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self.is_missing = False
        self.required: deque[str] = deque(maxlen=_MOST_REQUIRED)

    def __call__(self, line: str) -> None:
        """Take one line."""
        self.is_missing = self.is_missing or _MISSING in line
        if not self.is_missing:
            self._on_line(line)
        found = _REQUIRED.search(without_colours(line))
        if found is not None:
            self.required.append((found[1] or found[2])[:MOST_SHOWN])


def read_answer(ended: Ended) -> object:
    """Read what ``nix eval`` printed; bytes that are no UTF-8, which Nix takes in any string, stay halves.

    Raises:
        FormatError: a flake put too much of itself into it.
    """
    try:
        return json.loads(ended.stdout.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"what Nix tells cannot be read: {error}") from None


Answer = tuple[StorePath, str | None] | list[str] | str
"""A derivation, with its system; the names in a set of further attributes; the type of anything else."""


def parse_answer(value: object) -> Answer:
    """Read what ``describe_one`` gives; a flake may say anything there.

    Raises:
        FormatError: the path of the derivation is none.
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

"""The Nix expressions that are evaluated, the syntax of attributes, and Nix's answers. No I/O.

Expressions are functions for ``nix eval --json --apply``. They return lists: an attribute named ``outPath``
or ``__toString`` would turn a set into a string.
"""

import json
import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from nixcache_oci.clients.local_store.program import Ended, OnLine, without_colours
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nix_string import quote
from nixcache_oci.nix.store_path import StorePath

Path = tuple[str, ...]
"""Names of attributes, each within the one before."""

_BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*")
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[^."]+|"|(\.)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_MEANT: Final = {"n": "\n", "r": "\r", "t": "\t"}
# A file may be a function whose arguments all have defaults. String context would make `nix eval` build what
# it names. Missing attributes give null.
_DEFINITIONS: Final = """root: let
  set = if builtins.isFunction root then root { } else root;
  get = value: name: if builtins.isAttrs value && value ? ${name} then value.${name} else null;
  names = value: builtins.attrNames (builtins.removeAttrs value [ "recurseForDerivations" ]);
  describe = deep: path: let value = builtins.foldl' get set path; in
    if builtins.isAttrs value && value ? drvPath then
      [ "derivation" (builtins.unsafeDiscardStringContext value.drvPath) (value.system or null) ]
    else if builtins.isAttrs value && (deep || (value.recurseForDerivations or false) == true) then
      [ "set" (names value) ]
    else [ (builtins.typeOf value) ];
in"""

NAMES: Final = f"{_DEFINITIONS} if set ? drvPath then null else names set"
"""Returns the names in a set, or null for a derivation."""


def describe_one(path: Path, *, is_deep: bool = False) -> str:
    """Ask what an attribute is, as a list that begins with a word.

    That is ``derivation``, with its path and system; ``set``, with the names in a set that
    ``recurseForDerivations`` marks, or in any if it is deep; else only the type, ``null`` if there is
    nothing.
    """
    return f"{_DEFINITIONS} describe {_write(is_deep)} {_write_path(path)}"


def describe_many(paths: Iterable[Path], *, is_deep: bool = False) -> str:
    """Ask for ``[success, value]`` of each attribute, with values as of ``describe_one``.

    An attribute that throws does not affect the others, unless its error cannot be caught.
    """
    listed = " ".join(map(_write_path, paths))
    return f"""{_DEFINITIONS} map (path:
      let
        told = describe {_write(is_deep)} path;
        found = builtins.tryEval (builtins.deepSeq told told);
      in [ found.success found.value ]) [ {listed} ]"""


def find_system(places: Iterable[Path]) -> str:
    """Ask for the first of these attributes that is a system, or has an attribute ``system``; else null."""
    listed = " ".join(map(_write_path, places))
    return f"""{_DEFINITIONS} builtins.foldl' (found: path:
      let
        value = builtins.foldl' get set path;
        system = if builtins.isString value then value else get value "system";
        told = builtins.tryEval (if builtins.isString system then system else null);
      in if found != null then found else if told.success then told.value else null) null [ {listed} ]"""


def write_attribute(name: str) -> str:
    """Write an attribute name, quoted if necessary."""
    return name if _BARE_NAME.fullmatch(name) else quote(name)


def write_path(path: Iterable[str]) -> str:
    """Write an attribute path, such as ``packages.x86_64-linux."a.b"``."""
    return ".".join(map(write_attribute, path))


def split_path(text: str) -> list[str]:
    """Split an attribute path at the dots outside of quotes; the parts are not unquoted.

    Raises FormatError for an unclosed quote, or an empty name.
    """
    parts = [""]
    for found in _PART.finditer(text):
        if found[0] == '"':
            raise FormatError("a closing quote is missing")
        if found[1]:
            parts.append("")
        else:
            parts[-1] += found[0]
    if not all(parts):
        raise FormatError("there is an empty name in it")
    return parts


def parse_path(text: str) -> Path:
    """Read an attribute path, as ``write_path`` and users write it; errors are those of ``split_path``."""
    return tuple(_read_name(part) for part in split_path(text))


def _read_name(part: str) -> str:
    if not part.startswith('"'):
        return part
    return _ESCAPED.sub(lambda found: _MEANT.get(found[1], found[1]), part[1:-1])


def _write(value: bool) -> str:
    return "true" if value else "false"


def _write_path(path: Sequence[str]) -> str:
    return f"[ {' '.join(map(quote, path))} ]"


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
    """Read what ``nix eval`` printed; FormatError if it is no JSON, or nested too deeply.

    Bytes that are not UTF-8, which Nix allows, become lone surrogates.
    """
    try:
        return json.loads(ended.stdout.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"what Nix tells cannot be read: {error}") from None


AttributeValue = tuple[StorePath, str | None] | list[str] | str
"""A derivation, with its system; the names in a set of further attributes; the type of anything else."""


def parse_answer(value: object) -> AttributeValue:
    """Read the answer to ``describe_one``, in which a flake may put anything.

    Raises FormatError if the derivation's path or system is malformed.
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

"""The Nix expressions that are asked, and how attributes are written. No I/O.

All of them are functions for ``nix eval --json --apply``. They answer with lists: an attribute that is named
``outPath`` or ``__toString`` would turn a set into a string.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from nixcache_oci.errors import FormatError

Path = tuple[str, ...]
"""Names of attributes, each within the one before."""

_BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*")
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[^."]+|"|(\.)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_MEANT: Final = {"n": "\n", "r": "\r", "t": "\t"}
# A file may be a function of arguments that all have defaults; a flake's set is none. The context would make
# `nix eval` build what it names. What is missing gives null.
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
"""Gives the names in a set, or null where it is a derivation."""


def describe_one(path: Path, *, is_deep: bool = False) -> str:
    """Ask what an attribute is, as a list that begins with a word.

    That is ``derivation``, with the derivation's path and system; ``set``, with the names in a set of further
    attributes, as ``recurseForDerivations`` marks it; else the type alone, ``null`` where there is nothing.

    Args:
        path: of the attribute, from what is asked.
        is_deep: whether each set is one of further attributes.
    """
    return f"{_DEFINITIONS} describe {_write(is_deep)} {_write_path(path)}"


def describe_many(paths: Iterable[Path], *, is_deep: bool = False) -> str:
    """Ask for ``[success, value]`` of each attribute, with values as of ``describe_one``.

    What throws does not keep the others from being told; what cannot be caught does.
    """
    listed = " ".join(map(_write_path, paths))
    return f"""{_DEFINITIONS} map (path:
      let
        told = describe {_write(is_deep)} path;
        found = builtins.tryEval (builtins.deepSeq told told);
      in [ found.success found.value ]) [ {listed} ]"""


def find_system(places: Iterable[Path]) -> str:
    """Ask for the first system that one of these attributes is, or has under that name; null for none."""
    listed = " ".join(map(_write_path, places))
    return f"""{_DEFINITIONS} builtins.foldl' (found: path:
      let
        value = builtins.foldl' get set path;
        system = if builtins.isString value then value else get value "system";
        told = builtins.tryEval (if builtins.isString system then system else null);
      in if found != null then found else if told.success then told.value else null) null [ {listed} ]"""


def quote(text: str) -> str:
    """Write a string of Nix; it also stands for an attribute."""
    return '"' + text.translate(_ESCAPES).replace("${", "\\${") + '"'


def write_attribute(name: str) -> str:
    """Write an attribute as in a path of attributes: quoted where it has to be."""
    return name if _BARE_NAME.fullmatch(name) else quote(name)


def write_path(path: Iterable[str]) -> str:
    """Write a path of attributes, as ``packages.x86_64-linux."a.b"``."""
    return ".".join(map(write_attribute, path))


def split_path(text: str) -> list[str]:
    """Split a path of attributes at the dots that are outside of quotes; the parts stay as they are.

    Raises:
        FormatError: a quote without its other one, or nothing beside a dot.
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
    """Read a path of attributes, as ``write_path`` and users write it.

    Raises:
        FormatError: as ``split_path``.
    """
    return tuple(_read_name(part) for part in split_path(text))


def _read_name(part: str) -> str:
    if not part.startswith('"'):
        return part
    return _ESCAPED.sub(lambda found: _MEANT.get(found[1], found[1]), part[1:-1])


def _write(value: bool) -> str:
    return "true" if value else "false"


def _write_path(path: Sequence[str]) -> str:
    return f"[ {' '.join(map(quote, path))} ]"

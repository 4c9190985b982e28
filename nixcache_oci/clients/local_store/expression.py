"""The Nix expressions that are asked, and how attributes are written. No I/O.

All of them are functions for ``nix eval --json --apply``. They answer with lists: an attribute that is named
``outPath`` or ``__toString`` would turn a set into a string.
"""

import re
from collections.abc import Iterable
from typing import Final

_BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
# A file may be a function of arguments that all have defaults; a flake's set is none.
_OPENED: Final = "root: let set = if builtins.isFunction root then root { } else root; in"
# The context would make `nix eval` build what it names; an attribute that is missing gives null.
_DESCRIBED: Final = """let
  value = {value} or null;
  derivation = [ (builtins.unsafeDiscardStringContext value.drvPath) (value.system or null) ];
in if builtins.isAttrs value && value ? drvPath then derivation else null"""

NAMES: Final = f"{_OPENED} if set ? drvPath then null else builtins.attrNames set"
"""Gives the names in a set, or null where it is a derivation."""

ITSELF: Final = f"{_OPENED} {_DESCRIBED.format(value='{ inherit set; }.set')}"
"""Gives [drvPath system] of a derivation, or null where it is none."""


def describe_one(name: str, rest: str) -> str:
    """Ask for [drvPath system] of one attribute, or null where it is no derivation.

    Args:
        name: in the set.
        rest: the attributes to follow from there, such as ``config.system.build.toplevel``, or nothing.
    """
    return f"{_OPENED} {_DESCRIBED.format(value=_select(quote(name), rest))}"


def describe_many(names: Iterable[str], rest: str) -> str:
    """Ask for ``[success, value]`` of each attribute, with values as of ``describe_one``.

    What throws does not keep the others from being told; what cannot be caught does.
    """
    described = _DESCRIBED.format(value=_select("${name}", rest))
    listed = " ".join(quote(name) for name in names)
    return f"""{_OPENED} map (name:
      let found = builtins.tryEval (let told = {described}; in builtins.deepSeq told told);
      in [ found.success found.value ]) [ {listed} ]"""


def quote(text: str) -> str:
    """Write a string of Nix; it also stands for an attribute."""
    return '"' + text.translate(_ESCAPES).replace("${", "\\${") + '"'


def write_attribute(name: str) -> str:
    """Write an attribute as in a path of attributes: quoted where it has to be."""
    return name if _BARE_NAME.fullmatch(name) else quote(name)


def _select(name: str, rest: str) -> str:
    return f"set.{name}" + (f".{rest}" if rest else "")

"""The store paths that a verb is given, on the command line and on standard input, found in a cache.

This needs no Nix: a path is followed through its links until one names what the cache lists.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.cache.inventory import Entry
from nixcache_oci.cache.keepers import Root
from nixcache_oci.cli.cache_view import CacheView, warn
from nixcache_oci.cli.list import time_json
from nixcache_oci.clients.local_store.store import follow_links
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.nix.store_path import HashPart

_MAX_NEAR_NAMES: Final = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user named.

    Attributes:
        words: on the command line: all must be found.
        lines: of standard input: what is not found is left out, with a warning.
        nothing: the line to print where nothing was named and standard input was empty; else None.
    """

    words: Sequence[str]
    lines: Sequence[str]
    nothing: str | None

    @classmethod
    def read(cls, arguments: argparse.Namespace, verb: str, *, act: str | None = None) -> Self:
        """Read the arguments of ``add_paths``, and standard input if they say so.

        Raises:
            UsageError: nothing is named; ``verb`` does not do its ``act``.
        """
        lines = [line.strip() for line in sys.stdin if line.strip()] if arguments.stdin else []
        if arguments.paths or lines:
            return cls(arguments.paths, lines, None)
        if not arguments.stdin:
            raise UsageError(
                f"{verb}: no paths; name some, or give --stdin and one on each line of standard input"
            )
        return cls((), (), f"nothing to {act or verb}: no paths on standard input")


def add_paths(parser: argparse.ArgumentParser, *, of_cache: bool = False) -> None:
    """Describe the arguments that name store paths, of the local store or of a cache."""
    known = ", its hash part, or the name of a root" if of_cache else ""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH|HASH|ATTR" if of_cache else "PATH",
        help=f"store path, a path inside one, or a link to one such as ./result{known}",
    )
    parser.add_argument(
        "--stdin", action="store_true", help="read more paths from standard input, one per line"
    )


def find_all(
    view: CacheView, roots: Sequence[Root], asked: Asked
) -> tuple[list[list[Entry]], dict[str, str]]:
    """Find everything that was asked for.

    Returns:
        the variants of each store path, and why lines of standard input were left out.

    Raises:
        Error: a word, or every line, names nothing in the cache.
    """
    found: dict[HashPart, list[Entry]] = {}
    left_out: dict[str, str] = {}

    def add(what: str) -> None:
        for variants in _find(view, roots, what):
            found.setdefault(variants[0].narinfo.store_path.hash_part, variants)

    for word in asked.words:
        add(word)
    for line in asked.lines:
        try:
            add(line)
        except Error as error:
            left_out[line] = str(error)
            warn(f"{line}: left out: {error}")
    if not found and left_out:
        raise Error(next(iter(left_out.values())))
    return list(found.values()), left_out


def _find(view: CacheView, roots: Sequence[Root], what: str) -> list[list[Entry]]:
    """Find a path, a hash part, a root, or the target of a link; each store path with all variants."""
    if "/" not in what and (parts := _hash_parts(what)):
        return [_variants(view, parts, what)]
    if named := _named(view, roots, what):
        return _find_root(view, named)
    if "/" in what or os.path.lexists(what):
        return [_variants(view, _lead(view, what), what)]
    near = difflib.get_close_matches(what, {root.name for root in roots}, n=_MAX_NEAR_NAMES)
    hint = f"; there is {', '.join(near)}" if near else "; see nixcache-oci list, and list --roots"
    raise Error(f"{view.name}: there is neither a store path nor a root {what}{hint}")


def _variants(view: CacheView, parts: Sequence[HashPart], what: str) -> list[Entry]:
    for part in parts:
        if variants := view.inventory.find(part):
            return variants
        if malformed := view.inventory.malformed(part):
            tag, reason = next(iter(malformed.items()))
            raise Error(f"{view.name}: {tag} lists {what}, which is served to nobody: {reason}")
    raise Error(f"{view.name}: does not list {what}; publish it first, or see nixcache-oci list")


def _lead(view: CacheView, path: str) -> list[HashPart]:
    """Follow a path through its links, up to where it names what the cache lists, or enters a store."""
    parts: list[HashPart] = []
    try:
        for step in follow_links(path):
            parts += _hash_parts(step)
            if any(map(view.inventory.find, parts)) or _hash_parts(
                step.partition("/store/")[2].partition("/")[0]
            ):
                return parts
    except UsageError:
        if not parts:
            raise
    if not parts:
        raise UsageError(f"{path}: not in a store; give a store path, or a link to one, such as ./result")
    return parts


def _hash_parts(path: str) -> list[HashPart]:
    """Read the hash parts, alone or at the beginning of a base name, anywhere in a path."""
    found = []
    for part in path.split("/"):
        with suppress(FormatError):
            found.append(HashPart(part.partition("-")[0]))
    return found


def _named(view: CacheView, roots: Sequence[Root], what: str) -> list[Root]:
    """Find the roots of this name, or those whose attribute path ends so, if only one does."""
    if exact := [root for root in roots if root.name == what]:
        return exact
    ending = [root for root in roots if root.name.endswith(f".{what}")]
    names = sorted({root.name for root in ending})
    if len(names) > 1:
        raise Error(f"{view.name}: {what} means several roots; name one of {', '.join(names)}")
    return ending


def _find_root(view: CacheView, named: Sequence[Root]) -> list[list[Entry]]:
    """Find the paths of a root, in each scope that has it."""
    name = named[0].name
    paths = dict.fromkeys(path for root in named for path in root.paths)
    if not paths:
        failures = " and ".join(f"in {root.scope} at {time_json(root.failed)}" for root in named)
        raise Error(f"{view.name}: the root {name} was never built; it failed {failures}")
    found = {path: view.inventory.find(path.hash_part) for path in paths}
    absent = [str(path) for path, variants in found.items() if not variants]
    if len(absent) == len(found):
        raise Error(f"{view.name}: the root {name} is {', '.join(absent)}, which is not listed here")
    for path in absent:
        warn(f"the root {name} is {path} as well, which is not listed here")
    return [variants for variants in found.values() if variants]

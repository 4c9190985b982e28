"""The verb ``info``: all that a cache knows of one store path, or of what a root became.

With ``--json``, ``{"paths": [...]}`` with one object a store path: the fields that ``list`` gives, and those
of ``Info.to_json``.
"""

import argparse
import difflib
from collections.abc import MutableMapping, Sequence

from nixcache_oci.cache.inventory import Entry, Root
from nixcache_oci.cli.cache_view import (
    CacheView,
    add_view_flags,
    read_cache,
    read_keepers,
    warn,
)
from nixcache_oci.cli.compose import run_async, set_up_quiet_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.list import time_json
from nixcache_oci.cli.path_info import Look
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.errors import Error, FormatError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.settings import table
from nixcache_oci.settings.variable import Values

_MOST_NEAR_NAMES = 3


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "info",
        description=(
            "Show what a cache knows of a store path: narinfo, signatures, where its bytes lie, which "
            "segments list it, what keeps it, and how much it reaches."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        metavar="PATH|HASH|ATTR",
        help="store path or a path inside one, its base name or hash part, or the name of a root",
    )
    add_view_flags(parser)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Show."""
    values = Values(environment, arguments)
    set_up_quiet_logging(values)
    configured = values.get(table.PUBLIC_KEYS)
    view = run_async(read_cache(arguments, environment))
    keepers = read_keepers(view)
    tables = view.inventory.tables
    look = Look(tables.catalog(configured), configured or tables.recorded_keys, keepers)
    infos = [look.at(variants) for variants in _find(view, keepers.roots, arguments.what)]
    if arguments.json:
        say_json({"paths": [info.to_json() for info in infos]})
    else:
        texts = [info.to_lines() for info in infos]
        say(*texts[0], *(line for text in texts[1:] for line in ("", *text)))
    return DONE if view.is_whole and keepers.is_whole else FAILED


def _find(view: CacheView, roots: Sequence[Root], what: str) -> list[list[Entry]]:
    """Find what is meant, each with all of its variants.

    Raises:
        Error: the cache has no such thing.
    """
    hash_part = _hash_part(what)
    if hash_part is not None:
        if variants := view.inventory.find(hash_part):
            return [variants]
        if malformed := view.inventory.malformed(hash_part):
            tag, reason = next(iter(malformed.items()))
            raise Error(f"{view.name}: {tag} lists {what}, which is served to nobody: {reason}")
    if named := [root for root in roots if root.name == what]:
        return _find_root(view, named)
    near = difflib.get_close_matches(what, {root.name for root in roots}, n=_MOST_NEAR_NAMES)
    hint = f"; there is {', '.join(near)}" if near else "; see nixcache-oci list, and list --roots"
    raise Error(f"{view.name}: there is neither a store path nor a root {what}{hint}")


def _find_root(view: CacheView, named: Sequence[Root]) -> list[list[Entry]]:
    """Find what a root became, in each scope that has it.

    Raises:
        Error: nothing, or nothing that the cache lists.
    """
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


def _hash_part(what: str) -> HashPart | None:
    """Read a hash part, also at the beginning of a base name, alone or anywhere in a path."""
    for part in what.split("/"):
        try:
            return HashPart(part.partition("-")[0])
        except FormatError:
            continue
    return None

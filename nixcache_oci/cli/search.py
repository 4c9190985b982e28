"""The verb ``search``: store paths by a part of their name.

With ``--json``, ``{"complete": true, "paths": [...]}`` with one object a store path, as ``list`` gives them.
"""

import argparse
from collections.abc import Sequence

from nixcache_oci.cache.inventory import Listed
from nixcache_oci.cache.parallel import run_at_once
from nixcache_oci.cache.search import FoundPath, Query, search
from nixcache_oci.cli.cache_view import CacheView, add_view_flags, read_cache
from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import complain, say_json, say_table
from nixcache_oci.cli.list import listed_json, time_json
from nixcache_oci.cli.verb import DONE, FAILED, number
from nixcache_oci.errors import UsageError
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values
from nixcache_oci.wording import counted, format_size

_USUAL_LIMIT = 50
_MOST = 1_000_000

DESCRIPTION = (
    "Find store paths of a cache by a part of their name, the newest first. All words must be in the name, "
    "in any case and order; a store path, or its hash part, finds itself. Only what clients get is found."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("words", metavar="NAME", nargs="+", help="a part of the name, or a store path")
    parser.add_argument(
        "--limit",
        metavar="NUMBER",
        type=number(1, _MOST),
        default=_USUAL_LIMIT,
        help=f"how many to show at most; by default {_USUAL_LIMIT}",
    )
    add_view_flags(parser)


def run(values: Values) -> int:
    """Search."""
    start_logging(values)
    text = " ".join(values.flags.words)
    query = Query.parse(text)
    if query.is_empty:
        raise UsageError("NAME is empty: give a part of a store path's name")
    view = run_async(read_cache(values))
    catalog = view.inventory.tables.catalog(values.get(variables.PUBLIC_KEYS))
    found = run_at_once(search(catalog, query, values.flags.limit))
    listed = [_listed(view, one) for one in found.paths]
    if values.flags.json:
        say_json({"complete": found.is_all, "paths": list(map(listed_json, listed))})
    else:
        _print(view, listed, text, is_all=found.is_all)
    return DONE if listed and view.is_whole else FAILED


def _listed(view: CacheView, found: FoundPath) -> Listed:
    """Describe what clients get, of all variants."""
    variants = view.inventory.find(found.narinfo.store_path.hash_part)
    return Listed.of(next((one for one in variants if one.narinfo == found.narinfo), variants[0]))


def _print(view: CacheView, paths: Sequence[Listed], text: str, *, is_all: bool) -> None:
    say_table(
        [
            (
                str(listed.store_path),
                format_size(listed.nar_size),
                format_size(listed.file_size) if listed.file_size is not None else "-",
                time_json(listed.published) or "-",
            )
            for listed in paths
        ]
    )
    if not paths:
        complain(f"{view.name}: no name of a store path has {text}")
    elif is_all:
        complain(f"{view.name}: {counted(len(paths), 'path')}")
    else:
        complain(f"{view.name}: more than {counted(len(paths), 'path')}; add a word, or raise --limit")

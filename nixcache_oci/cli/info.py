"""The verb ``info``: all that a cache knows of store paths, or of what roots became.

With ``--json``, ``{"paths": [...], "failed": [...]}`` with one object a store path: the fields that ``list``
gives, and those of ``Info.to_json``.
"""

import argparse
from collections.abc import MutableMapping

from nixcache_oci.cli.cache_view import add_view_flags, read_cache, read_keepers
from nixcache_oci.cli.compose import run_async, set_up_quiet_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.list import failed_json
from nixcache_oci.cli.path_info import Look
from nixcache_oci.cli.paths import Asked, add_paths, find_all
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.settings import table
from nixcache_oci.settings.variable import Values


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
    add_paths(parser, of_cache=True)
    add_view_flags(parser)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Show."""
    values = Values(environment, arguments)
    set_up_quiet_logging(values)
    asked = Asked.read(arguments, "info", act="show")
    configured = values.get(table.PUBLIC_KEYS)
    view = run_async(read_cache(arguments, environment))
    keepers = read_keepers(view)
    tables = view.inventory.tables
    look = Look(tables.catalog(configured), configured or tables.recorded_keys, keepers)
    found = find_all(view, keepers.roots, asked)
    infos = [look.at(variants) for variants in found.paths]
    if arguments.json:
        say_json({"paths": [info.to_json() for info in infos], "failed": failed_json(found.left_out)})
    elif asked.nothing is not None:
        say(asked.nothing)
    else:
        texts = [info.to_lines() for info in infos]
        say(*texts[0], *(line for text in texts[1:] for line in ("", *text)))
    return DONE if view.is_whole and keepers.is_whole and not found.left_out else FAILED

"""The verb ``export``: a cache as plain files."""

import argparse
from collections.abc import MutableMapping
from pathlib import Path

from nixcache_oci.cli.cache_view import VARIABLES, read_cache_from
from nixcache_oci.cli.compose import open_repository, run_async, set_up_quiet_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.interrupt import if_interrupted
from nixcache_oci.cli.list import failed_json
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.maintenance.export import Export
from nixcache_oci.settings import table
from nixcache_oci.settings.repository import repository_config
from nixcache_oci.settings.variable import Values, add_flags
from nixcache_oci.wording import counted


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "export",
        description=(
            "Write a cache as plain files, which any web server, or file://, serves to Nix. A second run "
            "writes what is new."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to; it need not exist")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, (*VARIABLES, table.PRIORITY))


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Export."""
    set_up_quiet_logging(Values(environment, arguments))
    holds = f"what is in {arguments.folder} is whole; run the same command again, it writes the rest"
    with if_interrupted(holds):
        return run_async(_export(Values(environment, arguments), arguments.folder, is_json=arguments.json))


async def _export(values: Values, folder: Path, *, is_json: bool) -> int:
    priority = values.get(table.PRIORITY)
    location = repository_config(values)
    repository = open_repository(location, values.merged_environment(table.REPOSITORY_VARIABLES))
    try:
        actions = GithubActions.from_environment(values.environment)
        with showing(actions, is_quiet=values.flags.quiet) as progress:
            view = await read_cache_from(repository, values, progress)
            done = await Export(repository, folder, priority, progress).run(view.inventory)
    finally:
        await repository.close()
    if is_json:
        say_json(
            {
                "cache": repository.name,
                "folder": str(folder),
                "exported": done.written,
                "present": done.present,
                "failed": failed_json(done.reasons),
            }
        )
        return DONE if view.is_whole and not done.failed else FAILED
    written = counted(done.written, "path")
    say(f"{folder}: {written} written, {done.present} already there, {done.failed} failed")
    return DONE if view.is_whole and not done.failed else FAILED

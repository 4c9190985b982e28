"""The verb ``export``: a cache as plain files."""

import argparse
from pathlib import Path

from nixcache_oci.cli.cache_view import VARIABLES, read_cache_from
from nixcache_oci.cli.compose import opened, run_async, start_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.list import failed_json
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.maintenance.folder_export import Export
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import repository_config
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted

DESCRIPTION = (
    "Write a cache as plain files, which any web server, or file://, serves to Nix. A second run "
    "writes what is new."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to write to; made if missing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, (*VARIABLES, variables.PRIORITY))


def run(values: Values) -> int:
    """Export."""
    start_logging(values)
    folder = values.flags.folder
    holds = f"what is in {folder} is complete; run the same command again to write the rest"
    return run_async(_export(values, folder), holds)


async def _export(values: Values, folder: Path) -> int:
    priority = values.get(variables.PRIORITY)
    async with opened(repository_config(values), values) as repository:
        actions = GithubActions.from_environment(values.environment)
        with showing(actions, is_quiet=values.flags.quiet) as progress:
            view = await read_cache_from(repository, values, progress)
            done = await Export(repository, folder, priority, progress).run(view.inventory)
    if values.flags.json:
        say_json(
            {
                "cache": repository.name,
                "folder": str(folder),
                "exported": done.written,
                "present": done.present,
                "failed": failed_json(done.reasons),
            }
        )
    else:
        written = counted(done.written, "path")
        say(f"{folder}: {written} written, {done.present} already there, {done.failed} failed")
    return DONE if view.is_whole and not done.failed else FAILED

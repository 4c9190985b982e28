"""The verb ``queue``: publishes store paths as they come, many at a time."""

import argparse

from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import complain, say
from nixcache_oci.cli.paths import Asked, add_paths
from nixcache_oci.cli.publishing import choose_on_line, nix_environment
from nixcache_oci.cli.push import resolve
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.queue.spool import Spool
from nixcache_oci.settings.repository_config import queue_dir
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.settings.variables import LOG_LEVEL, PASS_ENV, QUEUE_DIR
from nixcache_oci.wording import counted

DESCRIPTION = (
    "Publish store paths as they come: a hook writes a small file for what Nix has built, and `queue run` "
    "publishes all that has come, in one batch."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="queue store paths")
    add_paths(add)
    add_flags(add, (QUEUE_DIR, PASS_ENV, LOG_LEVEL))


def run(values: Values) -> int:
    """Do what the action says."""
    start_logging(values)
    asked = Asked.read(values.flags, "queue add", act="queue")
    return run_async(_add(values, asked))


async def _add(values: Values, asked: Asked) -> int:
    if asked.nothing is not None:
        say(asked.nothing)
        return DONE
    nix = Nix(nix_environment(values), choose_on_line(None, is_quiet=values.flags.quiet))
    store = await LocalStore.open(nix)
    paths, left_out = await resolve(store, asked, "queue add")
    invalid = await store.find_invalid(paths)
    left_out |= {str(path): "it is not valid in this store" for path in invalid}
    complain(*(f"warning: {what}: left out: {reason}" for what, reason in left_out.items()))
    spool = Spool.of(queue_dir(values))
    spool.make()
    queued = [path for path in paths if path not in set(invalid)]
    spool.add(queued)
    say(f"{counted(len(queued), 'path')} queued")
    return FAILED if left_out else DONE

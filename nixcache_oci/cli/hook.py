"""The verb ``hook``: the script that queues whatever Nix builds."""

import argparse
from pathlib import Path
from typing import Final

from nixcache_oci.cli.compose import start_logging
from nixcache_oci.cli.console import complain, say, say_generated
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import UsageError
from nixcache_oci.queue.hook import HOOK_NAME, render_hook
from nixcache_oci.queue.spool import Spool
from nixcache_oci.settings.repository_config import queue_dir
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.settings.variables import LOG_LEVEL, QUEUE_DIR

DESCRIPTION = "Make the script that Nix runs after each build, which queues what was built for `queue run`."

_EXECUTABLE: Final = 0o777  # less the umask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for one in (
        actions.add_parser("install", help="write the script, and print the line for nix.conf"),
        actions.add_parser("show", help="print the script"),
    ):
        add_flags(one, (QUEUE_DIR, LOG_LEVEL))


def run(values: Values) -> int:
    """Write or print the script."""
    start_logging(values)
    folder = queue_dir(values)
    if values.flags.action == "show":
        say_generated(render_hook(folder))
        return DONE
    script = _check_name(folder / HOOK_NAME)
    Spool.of(folder).make()
    file = RootedPath.of(script)
    write_file(file, [render_hook(folder).encode()], file.parent, mode=_EXECUTABLE)
    complain("add this line to the nix.conf of the Nix that builds (where there is a daemon, the daemon's):")
    say(f"post-build-hook = {script}")
    return DONE


def _check_name(script: Path) -> Path:
    """Refuse a name that a line of nix.conf cannot hold."""
    if any(letter.isspace() or letter == "#" for letter in str(script)):
        raise UsageError(f"{script}: nix.conf takes no such path; name another folder by {QUEUE_DIR.name}")
    return script

"""The verb ``watch-exec``: runs a command, and publishes whatever becomes valid in the store meanwhile."""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nixcache_oci.cache.parallel import task_group
from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import complain
from nixcache_oci.cli.queue import add_timeout, describe_queued
from nixcache_oci.cli.queueing import Queueing, add_queue_flags
from nixcache_oci.clients.local_store.program import run_in_foreground
from nixcache_oci.queue.folder import QueueFolder
from nixcache_oci.queue.runner import drain
from nixcache_oci.settings.values import Values

DESCRIPTION = (
    "Run a command, publish whatever becomes valid in this store meanwhile, and end with the command's exit "
    "status, whether or not it could be published."
)

# Of no use to the command, and foreign code that it starts could read them.
_KEPT_BACK: Final = frozenset({"NIX_SIGNING_KEY", "NIXCACHE_TOKEN"})
_IF_INTERRUPTED: Final = "what was built is in the store; push it to publish it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command, after --")
    add_timeout(parser, "give up publishing this long after the command has ended")
    add_queue_flags(parser, has_folder=False)


def run(values: Values) -> int:
    """Run the command, and publish."""
    start_logging(values)
    values.flags.quiet = True  # the screen is the command's
    with tempfile.TemporaryDirectory(prefix="nixcache-queue-") as folder:
        queueing = Queueing.of(values, QueueFolder(Path(folder)))
        return run_async(_run(queueing, values.flags.command, values.flags.timeout), _IF_INTERRUPTED)


async def _run(queueing: Queueing, command: Sequence[str], seconds: int) -> int:
    folder = queueing.folder
    environment = queueing.settings.values.environment
    kept = {name: value for name, value in environment.items() if name not in _KEPT_BACK}
    folder.spool.make()
    # The lock tells `drain` that somebody publishes.
    with folder.locked(0):
        async with queueing.runner() as runner, task_group() as group:
            publishing = group.create_task(runner.run())
            status = await run_in_foreground(command, kept)
            try:
                async with asyncio.timeout(seconds):
                    await drain(folder, queueing.runner)
            except TimeoutError:
                complain(f"warning: not all is published after {seconds} s; {describe_queued(folder)}")
            publishing.cancel()
    return status

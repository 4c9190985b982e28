"""The verb ``queue``: publishes store paths as they come, many at a time."""

import argparse
import asyncio
from typing import Final

from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import complain, say, say_json
from nixcache_oci.cli.paths import Asked, add_paths
from nixcache_oci.cli.publishing import choose_on_line, nix_environment
from nixcache_oci.cli.push import resolve
from nixcache_oci.cli.queueing import Queueing, add_queue_flags
from nixcache_oci.cli.verb import DONE, FAILED, number
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import Error
from nixcache_oci.queue.folder import QueueFolder
from nixcache_oci.queue.runner import drain
from nixcache_oci.settings.repository_config import queue_dir
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.settings.variables import LOG_LEVEL, PASS_ENV, QUEUE_DIR
from nixcache_oci.wording import counted

DESCRIPTION = (
    "Publish store paths as they come: a hook writes a small file for what Nix has built, and `queue run` "
    "publishes all that has come, in one batch."
)

_LOCK_SECONDS: Final = 5.0
_USUAL_TIMEOUT: Final = 300
_MAX_TIMEOUT: Final = 24 * 3600
_IF_INTERRUPTED: Final = "what is not published yet stays queued; run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="publish what is queued, and what is queued later")
    add_queue_flags(run)
    add = actions.add_parser("add", help="queue store paths")
    add_paths(add)
    add_flags(add, (QUEUE_DIR, PASS_ENV, LOG_LEVEL))
    empty = actions.add_parser(
        "drain", help="wait until everything queued is published; publish it if nobody else does"
    )
    add_timeout(empty, "give up after this long, with exit status 1")
    add_queue_flags(empty)
    status = actions.add_parser("status", help="show what is queued, and how publishing goes")
    status.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(status, (QUEUE_DIR, LOG_LEVEL))


def add_timeout(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Describe the argument that bounds a wait for the end of the queue."""
    parser.add_argument(
        "--timeout",
        type=number(1, _MAX_TIMEOUT),
        default=_USUAL_TIMEOUT,
        metavar="SECONDS",
        help=f"{help_text} [default: %(default)s]",
    )


def run(values: Values) -> int:
    """Do what the action says."""
    start_logging(values)
    folder = QueueFolder(queue_dir(values))
    match values.flags.action:
        case "run":
            return run_async(_run(Queueing.of(values, folder)), _IF_INTERRUPTED)
        case "drain":
            return run_async(_drain(Queueing.of(values, folder), values.flags.timeout), _IF_INTERRUPTED)
        case "add":
            return run_async(_add(values, folder, Asked.read(values.flags, "queue add", act="queue")))
        case _:
            _show_status(folder, is_json=values.flags.json)
            return DONE


async def _run(queueing: Queueing) -> int:
    folder = queueing.folder
    folder.spool.make()
    with folder.locked(_LOCK_SECONDS) as is_ours:
        if not is_ours:
            raise Error(f"{folder.path}: another `queue run` publishes what is queued there already")
        async with queueing.runner() as runner:
            say(f"publishing what is queued in {folder.path}")
            await runner.run()
    return DONE


async def _drain(queueing: Queueing, seconds: int) -> int:
    folder = queueing.folder
    folder.spool.make()
    try:
        async with asyncio.timeout(seconds):
            await drain(folder, lambda: queueing.runner(is_draining=True))
    except TimeoutError:
        complain(f"after {seconds} s, {describe_queued(folder)}; see nixcache-oci queue status")
        return FAILED
    return DONE


async def _add(values: Values, folder: QueueFolder, asked: Asked) -> int:
    if asked.nothing is not None:
        say(asked.nothing)
        return DONE
    nix = Nix(nix_environment(values), choose_on_line(None, is_quiet=values.flags.quiet))
    store = await LocalStore.open(nix)
    paths, left_out = await resolve(store, asked, "queue add")
    invalid = await store.find_invalid(paths)
    left_out |= {str(path): "it is not valid in this store" for path in invalid}
    complain(*(f"warning: {what}: left out: {reason}" for what, reason in left_out.items()))
    folder.spool.make()
    queued = [path for path in paths if path not in set(invalid)]
    folder.spool.add(queued)
    say(f"{counted(len(queued), 'path')} queued")
    return FAILED if left_out else DONE


def _show_status(folder: QueueFolder, *, is_json: bool) -> None:
    events, paths = _count_queued(folder)
    is_running = False
    if events or folder.path.exists():
        with folder.locked(0) as is_free:
            is_running = not is_free
    state = folder.read_state()
    if is_json:
        say_json(
            {
                "folder": str(folder.path),
                "isRunning": is_running,
                "events": events,
                "paths": paths,
                "published": state.published,
                "publishedPaths": state.published_paths,
                "failures": state.failures,
                "failure": state.failure,
                "nextTry": state.next_try,
            }
        )
        return
    say(describe_queued(folder))
    say("`queue run` is publishing" if is_running else "nobody publishes: `queue run` does not run")
    if state.published is not None:
        say(f"last published: {counted(state.published_paths, 'path')} at {state.published}")
    if state.failures:
        times = counted(state.failures, "time")
        say(f"failed {times}, next try at {state.next_try}: {state.failure}")


def describe_queued(folder: QueueFolder) -> str:
    """Say in one line what is queued."""
    events, paths = _count_queued(folder)
    return f"queued: {counted(paths, 'path')} of {counted(events, 'event')} in {folder.path}"


def _count_queued(folder: QueueFolder) -> tuple[int, int]:
    """Count events, and the paths and derivations that they name; as many as are read at once."""
    events = list(folder.spool.read())
    return len(events), len({path for event in events for path in (*event.paths, *event.derivations)})

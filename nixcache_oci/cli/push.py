"""The verb ``push``: given store paths, with all that they refer to."""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, MutableMapping, Sequence

from nixcache_oci.cache.record import PUSH_SCOPE_START, PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import set_up_quiet_logging
from nixcache_oci.cli.progress import show_progress
from nixcache_oci.cli.publishing import (
    PublishSettings,
    add_publish_flags,
    opened,
    print_dry_run,
    publish_settings,
    publishing,
    report,
    run_publisher,
    show_plan,
)
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.settings.variable import Values

_SCOPE_PREFIX = "push/"


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "push",
        description=(
            "Publish store paths with all that they refer to, less what an upstream or the cache has. "
            "Each path becomes a root that gc keeps for as long as it is pushed again now and then."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="store path, or a link to one such as ./result"
    )
    parser.add_argument("--stdin", action="store_true", help="read further paths, one a line")
    parser.add_argument(
        "--closure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to push what the paths refer to as well [default: --closure]",
    )
    parser.add_argument(
        "--root",
        metavar="NAME",
        help="name of the root that the paths become [default: each its own name, such as hello-2.12]",
    )
    add_publish_flags(parser)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Push."""
    set_up_quiet_logging(Values(environment, arguments))
    settings = publish_settings(arguments, environment)
    paths = [*arguments.paths, *(_read_paths() if arguments.stdin else [])]
    if not paths:
        raise UsageError("push: no paths; name some, or give --stdin and one on each line of standard input")
    pushing = _push(settings, paths, arguments.root, arguments.scope, with_closure=arguments.closure)
    return run_publisher(pushing, settings.actions)


async def _push(
    settings: PublishSettings,
    paths: Sequence[str],
    root: str | None,
    scope: str | None,
    *,
    with_closure: bool,
) -> int:
    began = time.monotonic()
    nix = Nix(settings.nix_environment)
    with show_progress(sys.stderr, is_terminal=sys.stderr.isatty(), actions=settings.actions) as progress:
        async with (
            opened(settings) as repository,
            publishing(settings, repository, nix, progress) as publisher,
        ):
            roots = await publisher.store.resolve(paths)
            records = make_records(roots, root, scope, settings.run)
            plan = await publisher.plan(roots, with_closure=with_closure)
            progress.note(show_plan(plan))
            if settings.is_dry_run:
                print_dry_run(plan)
                return DONE
            published = await publisher.publish(plan, records)
    report(settings, repository, plan, published, time.monotonic() - began, ())
    return FAILED if published.failed else DONE


def make_records(
    roots: Iterable[StorePath], root: str | None, scope: str | None, run: str
) -> list[PublishRecord]:
    """Say what is kept and for how long: each name is a scope of its own, unless told otherwise.

    Raises:
        UsageError: a name that a record cannot hold.
    """
    by_scope: dict[str, list[tuple[str, StorePath]]] = defaultdict(list)
    for path in roots:
        name = root or path.name
        by_scope[scope or f"{PUSH_SCOPE_START}{name}"].append((name, path))
    time_of_all = now()
    try:
        return [
            PublishRecord(one, run, time_of_all, tuple(named), is_partial=True)
            for one, named in by_scope.items()
        ]
    except FormatError as error:
        raise UsageError(f"--root or --scope: {error}") from None


def _read_paths() -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()]

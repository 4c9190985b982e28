"""The verb ``push``: given store paths, with all that they refer to."""

import argparse
from collections import defaultdict
from collections.abc import Iterable

from nixcache_oci.cache.record import PUSH_SCOPE_START, PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import start_logging
from nixcache_oci.cli.paths import Asked, add_paths
from nixcache_oci.cli.publish_report import PublishReport, describe_plan, report_nothing
from nixcache_oci.cli.publishing import (
    PublishSettings,
    add_publish_flags,
    check_strict,
    publish_settings,
    publishing,
    run_publisher,
)
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import Error, FormatError, StoreError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.publisher.publish_plan import PublishPlan
from nixcache_oci.publisher.publisher import Publisher
from nixcache_oci.settings.values import Values

DESCRIPTION = (
    "Publish store paths with all that they refer to, less what an upstream or the cache has. "
    "Each path becomes a root that gc keeps for as long as it is pushed again now and then."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    add_paths(parser)
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


def run(values: Values) -> int:
    """Push."""
    start_logging(values)
    settings = publish_settings(values)
    asked = Asked.read(values.flags, "push")
    main = report_nothing(settings, asked.nothing) if asked.nothing is not None else _push(settings, asked)
    return run_publisher(main, settings.actions)


async def _push(settings: PublishSettings, asked: Asked) -> int:
    flags = settings.flags
    nix = settings.nix()
    with settings.progress as progress:
        async with (
            settings.opened() as repository,
            publishing(settings, repository, nix, progress) as publisher,
        ):
            paths, left_out = await resolve(publisher.store, asked, "push")
            plan, roots, gone = await plan_valid(publisher, paths, with_closure=flags.closure)
            left_out |= gone
            warnings = [f"{what}: left out: {reason}" for what, reason in left_out.items()]
            for line in warnings:
                progress.warn(line)
            check_strict(settings, warnings)
            records = make_records(roots, flags.root, flags.scope, settings.run)
            progress.note(describe_plan(plan, repository.name))
            report = PublishReport(settings, repository.name, plan, left_out=left_out)
            if flags.dry_run:
                publisher.committer.warn_of_doubts(plan)
                return report.finish()
            report.published = published = await publisher.publish(plan, records)
            await publisher.merge(published)
    return report.finish()


async def resolve(store: LocalStore, asked: Asked, verb: str) -> tuple[list[StorePath], dict[str, str]]:
    """Find the store objects that are meant; also returns the lines of standard input that mean none.

    Raises:
        Error: nothing that ``verb`` was given means one.
    """
    found = await store.resolve(asked.words)
    left_out: dict[str, str] = {}
    try:
        found += await store.resolve(asked.lines)
    except (UsageError, FormatError):
        for line in asked.lines:
            try:
                found += await store.resolve([line])
            except (UsageError, FormatError) as error:
                left_out[line] = str(error).removeprefix(f"{line}: ")
    if not found:
        raise Error(f"{verb}: " + ": ".join(next(iter(left_out.items()))))
    return list(dict.fromkeys(found)), left_out


async def plan_valid(
    publisher: Publisher, paths: Iterable[StorePath], *, with_closure: bool
) -> tuple[PublishPlan, list[StorePath], dict[str, str]]:
    """Plan for the paths that the store holds; returns the plan, those paths, and why the others are out.

    Raises:
        StoreError: it holds none of them, or Nix refused.
    """
    left = list(paths)
    gone: dict[str, str] = {}
    while True:
        try:
            return await publisher.plan(left, with_closure=with_closure), left, gone
        except StoreError:
            invalid = set(await publisher.store.find_invalid(left))
            if not invalid or len(invalid) == len(left):
                raise
            gone |= {str(path): "it is not valid in this store" for path in left if path in invalid}
            left = [path for path in left if path not in invalid]


def make_records(
    roots: Iterable[StorePath], root: str | None, scope: str | None, run: str
) -> list[PublishRecord]:
    """Make the records of the roots: each name is its own scope, unless one is given.

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

"""The verb ``push``: given store paths, with all that they refer to."""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from nixcache_oci.cache.record import PUSH_SCOPE_START, PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import set_up_quiet_logging
from nixcache_oci.cli.paths import Asked, add_paths
from nixcache_oci.cli.publishing import (
    PublishSettings,
    add_publish_flags,
    check_strict,
    opened,
    print_dry_run,
    publish_settings,
    publishing,
    report,
    report_json,
    report_nothing,
    run_publisher,
    show_plan,
)
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import Error, FormatError, StoreError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.publisher.publish_plan import PublishPlan
from nixcache_oci.publisher.publisher import Publisher
from nixcache_oci.settings.values import Values

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


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Push."""
    set_up_quiet_logging(Values(environment, arguments))
    settings = publish_settings(arguments, environment)
    asked = Asked.read(arguments, "push")
    if asked.nothing is not None:
        return run_publisher(report_nothing(settings, asked.nothing), settings.actions)
    request = _Request(asked, arguments.root, arguments.scope, arguments.closure)
    return run_publisher(_push(settings, request), settings.actions)


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be pushed.

    Attributes:
        asked: what has to lead into the store.
        root: name of the root that the paths become, or None.
        scope: of the records, or None.
        with_closure: whether what the paths refer to counts.
    """

    asked: Asked
    root: str | None
    scope: str | None
    with_closure: bool


async def _push(settings: PublishSettings, request: _Request) -> int:
    began = time.monotonic()
    nix = settings.nix()
    with settings.progress as progress:
        async with (
            opened(settings) as repository,
            publishing(settings, repository, nix, progress) as publisher,
        ):
            asked, left_out = await _resolve(publisher.store, request.asked)
            plan, roots, gone = await plan_valid(publisher, asked, with_closure=request.with_closure)
            left_out |= gone
            warnings = [f"{what}: left out: {reason}" for what, reason in left_out.items()]
            for line in warnings:
                progress.warn(line)
            check_strict(settings, warnings)
            records = make_records(roots, request.root, request.scope, settings.run)
            progress.note(show_plan(plan, repository))
            if settings.is_dry_run:
                publisher.committer.warn_of_doubts(plan)
                print_dry_run(settings, plan)
                report_json(settings, repository, plan, left_out=left_out)
                return FAILED if left_out else DONE
            published = await publisher.publish(plan, records)
            seconds = time.monotonic() - began
            await publisher.merge(published)
    report(settings, repository, plan, published, seconds, (), left_out)
    return FAILED if published.failed or left_out else DONE


async def _resolve(store: LocalStore, asked: Asked) -> tuple[list[StorePath], dict[str, str]]:
    """Tell which store objects are meant; also says why a line of standard input means none."""
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
        raise Error("push: " + ": ".join(next(iter(left_out.items()))))
    return list(dict.fromkeys(found)), left_out


async def plan_valid(
    publisher: Publisher, paths: Iterable[StorePath], *, with_closure: bool
) -> tuple[PublishPlan, list[StorePath], dict[str, str]]:
    """Plan for those of the paths that the store holds; also gives these, and says why not for the others.

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

"""The verb ``verify``: whether what a cache lists is there and right; mends it where that is asked for."""

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cli.cache_view import VARIABLES, read_cache_from, warn
from nixcache_oci.cli.compose import open_remover, opened, run_async, start_logging
from nixcache_oci.cli.console import complain, say, say_json
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.publishing import UPSTREAM_KEY_NAME, choose_on_line, nix_environment
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import StoreError, UsageError
from nixcache_oci.maintenance.problem import Problem
from nixcache_oci.maintenance.repair.repairer import Outcome, Repairer, RepairOptions, Resent
from nixcache_oci.maintenance.verifier import Verifier
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.publisher.options import Compression, PublishOptions
from nixcache_oci.publisher.publisher import Publisher
from nixcache_oci.settings import variables
from nixcache_oci.settings.file_config import signing_keys, upstream_urls
from nixcache_oci.settings.repository_config import (
    RepositoryConfig,
    index_dir,
    repository_config,
    segment_options,
)
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted

_IF_REPAIR_INTERRUPTED = "repairs made so far are kept; run the same command again to repair the rest"
_REPAIR_VARIABLES = (variables.SIGNING_KEY_FILE, variables.MAX_LAYERS, variables.MAX_BLOB_BYTES)

DESCRIPTION = (
    "Check that every path of a cache has its bytes and a good signature, and that what it refers to "
    "is listed or upstream. What is wrong is listed by name; exit status 1 while something is."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("--content", action="store_true", help="download, unpack and hash every byte")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="send again what the local Nix store still has, and unlist what nobody has",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --repair: show what would be done, and do nothing"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --repair: proceed even if over half of the paths would be dropped",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, (*VARIABLES, variables.UPSTREAM, variables.UPSTREAM_FILE, *_REPAIR_VARIABLES))


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the verb was told, parsed; without repair options, nothing is repaired."""

    values: Values
    location: RepositoryConfig
    nix: Nix
    actions: GithubActions | None
    publish: PublishOptions
    repair: RepairOptions | None


def run(values: Values) -> int:
    """Check, and mend."""
    start_logging(values)
    arguments = values.flags
    is_writing = arguments.repair and not arguments.dry_run
    checked = run_async(_verify(_parse(values)), _IF_REPAIR_INTERRUPTED if is_writing else "")
    outcome = checked.outcome
    if arguments.json:
        say_json(_to_json(checked, is_repair=arguments.repair))
    else:
        for line in checked.doubts():
            warn(line)
        left = f", {_count(outcome.left)} left" if is_writing else ""
        complain(f"{checked.name}: {counted(_count(outcome.problems), 'problem')}{left}")
    return FAILED if outcome.left else DONE


def _parse(values: Values) -> _Settings:
    arguments = values.flags
    if (arguments.dry_run or arguments.force) and not arguments.repair:
        raise UsageError("verify: --dry-run and --force go with --repair")
    location = repository_config(values)
    segments = segment_options(values, location, values.get(variables.REPO))
    publish = PublishOptions(
        keys=signing_keys(values) if arguments.repair else (),
        upstream_key_names=frozenset({UPSTREAM_KEY_NAME}),
        verify_upstream=True,
        segments=segments,
        jobs=os.cpu_count() or 1,
        allow_unsigned=True,  # what is listed unsigned is sent again as it was
    )
    repair = RepairOptions(arguments.dry_run, arguments.force, segments)
    actions = GithubActions.from_environment(values.environment)
    nix = Nix(nix_environment(values), choose_on_line(actions, is_quiet=values.flags.quiet))
    return _Settings(values, location, nix, actions, publish, repair if arguments.repair else None)


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was found in the repository of this name.

    Attributes:
        unsigned: how many listed paths no key signed.
        foreign: how many are signed by unknown keys only.
    """

    name: str
    outcome: Outcome
    unsigned: int
    foreign: int

    def doubts(self) -> Iterator[str]:
        """Describe what Nix refuses, though nothing may be wrong with it."""
        if self.unsigned:
            yield f"{counted(self.unsigned, 'path')} unsigned: Nix refuses what nobody signed"
        if self.foreign:
            yield f"{counted(self.foreign, 'path')} signed, but by no key that is known here"


async def _verify(settings: _Settings) -> _Checked:
    values, repair, actions = settings.values, settings.repair, settings.actions
    async with AsyncExitStack() as stack:
        is_writing = repair is not None and not repair.is_dry_run
        repository = await stack.enter_async_context(opened(settings.location, values, push=is_writing))
        upstreams = Upstreams(open_upstreams(upstream_urls(values), values.environment))
        stack.push_async_callback(upstreams.close)
        progress = stack.enter_context(showing(actions, is_quiet=values.flags.quiet))

        async def read() -> Inventory:
            # gc reads every table, and refuses to run on one that is damaged.
            return (await read_cache_from(repository, values, progress, with_taken_in=True)).inventory

        inventory = await read()
        keys = values.get(variables.PUBLIC_KEYS) or inventory.tables.recorded_keys
        verifier = Verifier(repository, upstreams, keys, with_content=values.flags.content, progress=progress)
        problems = await verifier.run(inventory)

        def checked(outcome: Outcome) -> _Checked:
            return _Checked(repository.name, outcome, verifier.unsigned, verifier.foreign)

        if not values.flags.json:
            say(*_lines(problems))
        if repair is None or not problems:
            return checked(Outcome(problems, left=problems))
        remover = open_remover(settings.location, values.merged_environment(variables.REPOSITORY_VARIABLES))
        stack.push_async_callback(remover.close)
        folder = await asyncio.to_thread(IndexFolder, index_dir(values), repository.name)
        if actions is not None:
            stack.callback(actions.log.resume)
        store = await _open_store(settings.nix)
        resender = _PublishAgain(repository, store, folder, upstreams, settings.publish, progress)
        tell = complain if values.flags.json else say
        repairer = Repairer(repository, remover, verifier, read, resender, repair, tell)
        return checked(await repairer.run(inventory, problems))


@dataclass(frozen=True, slots=True)
class _PublishAgain:
    """Publishes again what the local store has; implements ``Resender``."""

    repository: Repository
    store: LocalStore | None
    folder: IndexFolder
    upstreams: Upstreams
    options: PublishOptions
    progress: Progress

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """The public keys of those that sign."""
        return self.options.public_keys

    async def resend(
        self, infos: Sequence[PathInfo], lost: AbstractSet[str], compression: Compression, *, is_dry_run: bool
    ) -> Resent:
        """Publish these with their references, compressed as given."""
        if self.store is None:
            return Resent({})
        encoding = replace(self.options.encoding, compression=compression, level=None)
        options = replace(self.options, encoding=encoding)
        publisher = Publisher(
            self.repository, self.store, self.folder, self.upstreams, options, self.progress
        )
        plan = (await publisher.plan([info.store_path for info in infos])).pushing(lost)
        # A signature does not cover where the bytes are: those who vouched for the path still do.
        sigs = {info.store_path: info.sigs for info in infos}
        push = tuple(replace(info, sigs=sigs.get(info.store_path, info.sigs)) for info in plan.push)
        plan = replace(plan, push=push)
        sizes = {info.store_path: info.nar_size for info in push}
        sizes |= {info.store_path: 0 for info, _ in plan.relist}
        if is_dry_run or not sizes:
            return Resent(sizes)
        published = await publisher.publish(plan, ())
        listed = {narinfo.store_path for narinfo in published.listed}
        return Resent({path: sizes.get(path, 0) for path in listed}, published.failed)


async def _open_store(nix: Nix) -> LocalStore | None:
    try:
        return await LocalStore.open(nix)
    except (UsageError, StoreError) as error:
        warn(f"there is no local store to send anything again from: {error}")
        return None


def _to_json(checked: _Checked, *, is_repair: bool) -> dict[str, object]:
    outcome = checked.outcome
    document: dict[str, object] = {
        "problems": [_problem_to_json(one) for one in outcome.problems],
        "unsigned": checked.unsigned,
        "foreignSigned": checked.foreign,
    }
    if is_repair:
        document["restored"] = outcome.restored
        document["unlisted"] = outcome.unlisted
        document["left"] = [_problem_to_json(one) for one in outcome.left]
    return document


def _problem_to_json(one: Problem) -> dict[str, str]:
    return {"path": one.path, "what": one.what, "kind": one.kind.value, "segment": one.segment}


def _lines(problems: list[Problem]) -> list[str]:
    """Write each problem once: two segments may list the same path."""
    return list(dict.fromkeys(f"{problem.path}: {problem.what}" for problem in problems))


def _count(problems: list[Problem]) -> int:
    return len(_lines(problems))

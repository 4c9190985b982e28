"""The verb ``verify``: whether what a cache lists is there and right; mends it where that is asked for."""

import argparse
import asyncio
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cli.cache_view import VARIABLES, read_cache_from, warn
from nixcache_oci.cli.compose import open_remover, open_repository, run_async, set_up_quiet_logging
from nixcache_oci.cli.console import complain, say, say_json
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.interrupt import if_interrupted
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.publishing import UPSTREAM_KEY_NAME, choose_on_line
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.program import OnLine
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import StoreError, UsageError
from nixcache_oci.maintenance.problem import Problem
from nixcache_oci.maintenance.repair.repairer import Outcome, Repairer, RepairOptions, Resent
from nixcache_oci.maintenance.verifier import Verifier
from nixcache_oci.publisher.options import Compression, NarEncoding, PublishOptions
from nixcache_oci.publisher.publisher import Publisher
from nixcache_oci.settings import variables
from nixcache_oci.settings.index_dir import index_dir
from nixcache_oci.settings.publish_config import nix_environment, segment_options, signing_keys
from nixcache_oci.settings.repository_config import RepositoryConfig, repository_config
from nixcache_oci.settings.upstream_config import upstream_urls
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted

_IF_REPAIR_INTERRUPTED = (
    "what was mended stays so, and the rest is as it was; run the same command again, it mends the rest"
)
_REPAIR_VARIABLES = (variables.SIGNING_KEY_FILE, variables.MAX_LAYERS, variables.MAX_BLOB_BYTES)


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "verify",
        description=(
            "Check that every path of a cache has its bytes and a good signature, and that what it refers to "
            "is listed or upstream. What is wrong is listed by name; exit status 1 while something is."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--content", action="store_true", help="download, unpack and hash every byte")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="send again what the local Nix store still has, and unlist what nobody has",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --repair: say what would be done")
    parser.add_argument(
        "--force", action="store_true", help="with --repair: also where over half of the paths would leave"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, (*VARIABLES, variables.UPSTREAM, variables.UPSTREAM_FILE, *_REPAIR_VARIABLES))


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the verb was told, parsed.

    Attributes:
        values: for what reads the cache.
        location: the repository.
        nix_environment: for Nix, which gets a part of it.
        publish: how to send again.
        with_content: whether every byte is looked at.
        repair: how to mend; None for not at all.
        is_json: whether the result alone is printed.
    """

    values: Values
    location: RepositoryConfig
    nix_environment: Mapping[str, str]
    publish: PublishOptions
    with_content: bool
    repair: RepairOptions | None
    is_json: bool


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Check, and mend."""
    set_up_quiet_logging(Values(environment, arguments))
    with if_interrupted(_IF_REPAIR_INTERRUPTED if arguments.repair and not arguments.dry_run else ""):
        checked = run_async(_verify(_parse(arguments, environment)))
    outcome = checked.outcome
    if arguments.json:
        say_json(_to_json(checked, is_repair=arguments.repair))
    else:
        for line in checked.doubts():
            warn(line)
        left = f", {_count(outcome.left)} left" if arguments.repair and not arguments.dry_run else ""
        complain(f"{checked.name}: {counted(_count(outcome.problems), 'problem')}{left}")
    return FAILED if outcome.left else DONE


def _parse(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> _Settings:
    if (arguments.dry_run or arguments.force) and not arguments.repair:
        raise UsageError("verify: --dry-run and --force go with --repair")
    values = Values(environment, arguments)
    location = repository_config(values)
    segments = segment_options(values, location)
    publish = PublishOptions(
        keys=signing_keys(values) if arguments.repair else (),
        upstream_key_names=frozenset({UPSTREAM_KEY_NAME}),
        verify_upstream=True,
        encoding=NarEncoding(max_blob_bytes=segments.max_blob_bytes),
        segments=segments,
        jobs=os.cpu_count() or 1,
        allow_unsigned=True,  # what is listed unsigned is sent again as it was
    )
    repair = RepairOptions(arguments.dry_run, arguments.force, segments)
    return _Settings(
        values,
        location,
        nix_environment(values),
        publish,
        with_content=arguments.content,
        repair=repair if arguments.repair else None,
        is_json=arguments.json,
    )


@dataclass(frozen=True, slots=True)
class _Checked:
    """What came of it.

    Attributes:
        name: of the repository.
        outcome: what was wrong, and what was mended.
        unsigned: how many listed paths nobody vouches for.
        foreign: how many are signed, and by no key that is known.
    """

    name: str
    outcome: Outcome
    unsigned: int
    foreign: int

    def doubts(self) -> Iterator[str]:
        """Say what Nix refuses, though nothing may be wrong with it."""
        if self.unsigned:
            yield f"{counted(self.unsigned, 'path')} unsigned: Nix refuses what nobody signed"
        if self.foreign:
            yield f"{counted(self.foreign, 'path')} signed, but by no key that is known here"


async def _verify(settings: _Settings) -> _Checked:
    environment = settings.values.merged_environment(variables.REPOSITORY_VARIABLES)
    repair = settings.repair
    async with AsyncExitStack() as stack:
        is_writing = repair is not None and not repair.is_dry_run
        repository = open_repository(settings.location, environment, push=is_writing)
        stack.push_async_callback(repository.close)
        upstreams = Upstreams(open_upstreams(upstream_urls(settings.values), settings.values.environment))
        stack.push_async_callback(upstreams.close)

        is_quiet: bool = settings.values.flags.quiet
        actions = GithubActions.from_environment(settings.values.environment)
        progress = stack.enter_context(showing(actions, is_quiet=is_quiet))

        async def read() -> Inventory:
            # gc reads every table, and refuses to run on one that is damaged.
            view = await read_cache_from(repository, settings.values, progress, with_taken_in=True)
            return view.inventory

        tell = complain if settings.is_json else say

        inventory = await read()
        keys = settings.values.get(variables.PUBLIC_KEYS) or inventory.tables.recorded_keys
        verifier = Verifier(
            repository, upstreams, keys, with_content=settings.with_content, progress=progress
        )
        problems = await verifier.run(inventory)

        def checked(outcome: Outcome) -> _Checked:
            return _Checked(repository.name, outcome, verifier.unsigned, verifier.foreign)

        if not settings.is_json:
            tell(*_lines(problems))
        if repair is None or not problems:
            return checked(Outcome(problems, left=problems))
        remover = open_remover(settings.location, environment)
        stack.push_async_callback(remover.close)
        folder = await asyncio.to_thread(IndexFolder, index_dir(settings.values), repository.name)
        if actions is not None:
            stack.callback(actions.log.resume)
        store = await _open_store(settings.nix_environment, choose_on_line(actions, is_quiet=is_quiet))
        resender = _PublishAgain(repository, store, folder, upstreams, settings.publish, progress)
        repairer = Repairer(repository, remover, verifier, read, resender, repair, tell)
        return checked(await repairer.run(inventory, problems))


class _PublishAgain:
    """Publishes again what the local store has; implements ``Resender``."""

    def __init__(
        self,
        repository: Repository,
        store: LocalStore | None,
        folder: IndexFolder,
        upstreams: Upstreams,
        options: PublishOptions,
        progress: Progress,
    ) -> None:
        self.store = store
        self.public_keys = options.public_keys
        self._repository = repository
        self._folder = folder
        self._upstreams = upstreams
        self._options = options
        self._progress = progress

    async def resend(
        self, infos: Sequence[PathInfo], lost: AbstractSet[str], compression: Compression, *, is_dry_run: bool
    ) -> Resent:
        """Publish these, compressed so, and what they refer to."""
        if self.store is None:
            return Resent({})
        encoding = replace(self._options.encoding, compression=compression, level=None)
        options = replace(self._options, encoding=encoding)
        publisher = Publisher(
            self._repository, self.store, self._folder, self._upstreams, options, self._progress
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


async def _open_store(environment: Mapping[str, str], on_line: OnLine) -> LocalStore | None:
    try:
        return await LocalStore.open(Nix(environment, on_line))
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


def _problem_to_json(problem: Problem) -> dict[str, str]:
    return {
        "path": problem.path,
        "what": problem.what,
        "kind": problem.kind.value,
        "segment": problem.segment,
    }


def _lines(problems: list[Problem]) -> list[str]:
    """Write each once: two segments may list the same."""
    return list(dict.fromkeys(f"{problem.path}: {problem.what}" for problem in problems))


def _count(problems: list[Problem]) -> int:
    return len(_lines(problems))

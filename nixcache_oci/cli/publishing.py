"""What ``publish`` and ``push`` share: flags, and the parts that they put together."""

import argparse
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import in_background
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import open_repository, run_async
from nixcache_oci.cli.console import complain, say, say_json, show_foreign, without_colours
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.interrupt import if_interrupted
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.publish_json import PublishDocument
from nixcache_oci.cli.publish_summary import OutputRow, PublishSummary, PushedRow, render_summary
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE
from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.program import OnLine
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import Error, UsageError
from nixcache_oci.publisher.contents import ContentsReader
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.options import COMPRESSIONS, NarEncoding, PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan
from nixcache_oci.publisher.publisher import Publisher
from nixcache_oci.settings import variables
from nixcache_oci.settings.index_dir import index_dir
from nixcache_oci.settings.publish_config import nix_environment, segment_options, signing_keys
from nixcache_oci.settings.repository_config import RepositoryConfig, repository_config
from nixcache_oci.settings.upstream_config import upstream_urls
from nixcache_oci.settings.values import Values, Variable, add_flags
from nixcache_oci.wording import counted, format_duration, format_size

VARIABLES: Final = (
    *variables.REPOSITORY_VARIABLES,
    *variables.PUBLISH_VARIABLES,
    variables.UPSTREAM,
    variables.UPSTREAM_FILE,
    variables.LOG_LEVEL,
)

UPSTREAM_KEY_NAME: Final = "cache.nixos.org-1"
PUBLIC_KEY_OUTPUT: Final = "public-key"
"""Of a step in a workflow: the keys, separated by spaces."""

_MAX_JOBS: Final = 64
_MOST_WARNINGS: Final = 1000  # of a program, remembered so that none is shown twice
_IF_INTERRUPTED: Final = (
    "what was sent is kept, and listed only if all of it was; run the same command again, it sends the rest"
)


def add_publish_flags(parser: argparse.ArgumentParser, *more: Variable[object]) -> None:
    """Describe the arguments of everything that publishes from the local store, and ``more`` settings."""
    parser.add_argument(
        "--compression", choices=list(COMPRESSIONS), default="zstd", help="of NARs [default: zstd]"
    )
    levels = ", ".join(f"{name} {usual}" for name, (_, usual) in COMPRESSIONS.items() if usual)
    parser.add_argument("--level", type=int, metavar="N", help=f"of the compression [default: {levels}]")
    parser.add_argument(
        "--verify-upstream",
        action="store_true",
        help="ask the upstreams if they really have such paths, and push those that they have not",
    )
    add_sending_flags(parser, variables.MERGE, *more)


def add_sending_flags(
    parser: argparse.ArgumentParser, *more: Variable[object], usual_jobs: str = "one a core"
) -> None:
    """Describe the arguments of everything that sends store objects, wherever they come from."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be pushed, and push nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--scope",
        metavar="NAME",
        help="what later publishes of the same scope supersede; no spaces",
    )
    parser.add_argument(
        "--jobs",
        type=_parse_jobs,
        metavar="N",
        help=f"store objects read at once [default: {usual_jobs}]",
    )
    parser.add_argument(
        "--upstream-key-name",
        action="append",
        metavar="NAME",
        help=f"paths signed by a key of this name are upstream, and not pushed; repeatable; "
        f"'' for none [default: {UPSTREAM_KEY_NAME}]",
    )
    parser.add_argument(
        "--strict", action="store_true", help="publish nothing unless everything can be published"
    )
    parser.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="publish what nobody signed; Nix refuses it unless told otherwise",
    )
    parser.add_argument(
        "--new-key",
        action="store_true",
        help="sign with a key that the cache does not record yet; clients have to trust it, too",
    )
    parser.add_argument(
        "--public-key-file",
        type=Path,
        metavar="FILE",
        help="write the public keys there, one a line, where they changed",
    )
    add_flags(parser, (*VARIABLES, *more))


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """What a publisher was told, parsed.

    Attributes:
        location: the repository.
        environment: for credentials.
        nix_environment: for Nix, which gets a part of it: no secret of ours.
        options: of the publisher.
        upstreams: base URLs.
        index_dir: where tables are kept.
        is_dry_run: whether nothing is sent.
        is_json: whether results are printed as JSON.
        public_key_file: where the public keys are written, or None.
        actions: where this runs as a GitHub workflow.
        run: names this run in records.
        is_quiet: whether only results, warnings and errors are shown.
    """

    location: RepositoryConfig
    environment: Mapping[str, str]
    nix_environment: Mapping[str, str]
    options: PublishOptions
    upstreams: tuple[str, ...]
    index_dir: Path
    is_dry_run: bool
    is_json: bool
    public_key_file: Path | None
    actions: GithubActions | None
    run: str
    is_quiet: bool

    @property
    def progress(self) -> AbstractContextManager[Progress]:
        """What shows how far it is."""
        return showing(self.actions, is_quiet=self.is_quiet)

    def nix(self, options: Sequence[tuple[str, str]] = ()) -> Nix:
        """Give Nix, whose words are shown as what they are: somebody else's."""
        return Nix(self.nix_environment, choose_on_line(self.actions, is_quiet=self.is_quiet), options)


def choose_on_line(actions: GithubActions | None, *, is_quiet: bool) -> OnLine:
    """Choose what shows the lines of a program that is started; when quiet, only its warnings and errors.

    A warning is shown once: Nix repeats it, such as that a tree is dirty, for each question that it is asked.
    """
    show = show_foreign if actions is None else actions.log.show
    warned: set[str] = set()

    def show_some(line: str) -> None:
        plain = without_colours(line)
        if plain.startswith("warning:"):
            if plain in warned:
                return
            if len(warned) < _MOST_WARNINGS:
                warned.add(plain)
        elif is_quiet and not plain.startswith("error:"):
            return
        show(line)

    return show_some


def publish_settings(arguments: argparse.Namespace, environment: Mapping[str, str]) -> PublishSettings:
    """Parse what the publisher is told.

    Raises:
        UsageError: a value that cannot be used.
    """
    values = Values(environment, arguments)
    actions = GithubActions.from_environment(environment)
    location = repository_config(values)
    given = arguments.upstream_key_name
    names = [UPSTREAM_KEY_NAME] if given is None else given
    segments = segment_options(values, location)
    options = PublishOptions(
        keys=signing_keys(values),
        upstream_key_names=frozenset(name for name in names if name),
        verify_upstream=arguments.verify_upstream,
        encoding=NarEncoding(arguments.compression, arguments.level, segments.max_blob_bytes),
        segments=segments,
        jobs=arguments.jobs or os.cpu_count() or 1,
        is_strict=arguments.strict,
        allow_unsigned=arguments.allow_unsigned,
        allow_new_key=arguments.new_key,
        is_merging=values.get(variables.MERGE),
        source=actions.source if actions is not None else None,
    )
    return PublishSettings(
        location=location,
        environment=values.merged_environment(variables.REPOSITORY_VARIABLES),
        nix_environment=nix_environment(values),
        options=options,
        upstreams=upstream_urls(values),
        index_dir=index_dir(values),
        is_dry_run=arguments.dry_run,
        is_json=arguments.json,
        public_key_file=arguments.public_key_file,
        actions=actions,
        run=(actions.run_id if actions is not None else None) or _own_run(),
        is_quiet=arguments.quiet,
    )


@asynccontextmanager
async def opened(settings: PublishSettings) -> AsyncIterator[Repository]:
    """Open the repository for pushing."""
    repository = open_repository(settings.location, settings.environment, push=not settings.is_dry_run)
    try:
        yield repository
    finally:
        await repository.close()


@asynccontextmanager
async def publishing(
    settings: PublishSettings, repository: Repository, nix: Nix, progress: Progress
) -> AsyncIterator[Publisher]:
    """Put a publisher together."""
    async with AsyncExitStack() as stack:
        upstreams = Upstreams(open_upstreams(settings.upstreams, settings.environment))
        stack.push_async_callback(upstreams.close)
        folder = await asyncio.to_thread(IndexFolder, settings.index_dir, repository.name)
        # While Nix is asked where the store is, and for the closure: a distant registry takes as long.
        reading = await stack.enter_async_context(
            in_background(ContentsReader(repository, folder, progress).read())
        )
        store = await LocalStore.open(nix)
        yield Publisher(repository, store, folder, upstreams, settings.options, progress, reading)


def run_publisher(main: Coroutine[object, object, int], actions: GithubActions | None) -> int:
    """Run it to its end; whoever interrupts it learns how things stand, and a workflow is annotated."""
    try:
        with if_interrupted(_IF_INTERRUPTED):
            return run_async(main)
    except Error as error:
        if actions is None:
            raise
        actions.error(str(error))
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    finally:
        if actions is not None:
            actions.log.resume()


def check_strict(settings: PublishSettings, problems: Sequence[str]) -> None:
    """Refuse to go on, where that was asked for.

    Raises:
        Error: ``--strict``, and there is a problem.
    """
    if settings.options.is_strict and problems:
        raise Error(f"--strict: nothing is published, for {problems[0]}" + _and_more(len(problems) - 1))


def show_plan(plan: PublishPlan, repository: Repository) -> str:
    """Write the line that stands before everything: what goes where."""
    relist = f", {len(plan.relist)} to sign" if plan.relist else ""
    return (
        f"{counted(plan.paths, 'path')}: {len(plan.upstream)} upstream, {len(plan.cached)} cached{relist}, "
        f"{len(plan.push)} to push ({format_size(plan.push_bytes)}) to {repository.name}"
    )


def report_json(
    settings: PublishSettings,
    repository: Repository,
    plan: PublishPlan | None,
    published: Published | None = None,
    left_out: Mapping[str, str] | None = None,
    *,
    outputs: Sequence[OutputRow] = (),
    seconds: float = 0,
) -> None:
    """Print what came of it as JSON, where that was asked for."""
    if settings.is_json:
        keys = [str(key) for key in settings.options.public_keys]
        document = PublishDocument(
            repository.name, settings.is_dry_run, keys, plan, published, left_out or {}, outputs, seconds
        )
        say_json(document.to_json())


async def report_nothing(settings: PublishSettings, line: str) -> int:
    """Say that there was nothing to do."""
    async with opened(settings) as repository:
        report_json(settings, repository, PublishPlan())
    if not settings.is_json:
        say(line)
    return DONE


def print_dry_run(settings: PublishSettings, plan: PublishPlan) -> None:
    """Print each path that would be pushed or signed."""
    if settings.is_json:
        return
    for info in plan.push:
        say(f"push {info.store_path} {format_size(info.nar_size)}")
    for info, _ in plan.relist:
        say(f"sign {info.store_path}")


def report(
    settings: PublishSettings,
    repository: Repository,
    plan: PublishPlan,
    published: Published,
    seconds: float,
    outputs: Sequence[OutputRow],
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Print what came of it, and leave summary and public keys where they are wanted."""
    sizes = {info.store_path: info.nar_size for info in plan.push}
    pushed = [
        PushedRow(narinfo.store_path.base_name, narinfo.nar_size, narinfo.file_size or 0)
        for narinfo in published.listed
        if narinfo.store_path in sizes
    ]
    size = format_size(sum(row.nar_size for row in pushed))
    packed = format_size(sum(row.file_size for row in pushed))
    took = format_duration(seconds)
    if published.is_needless:
        line = f"{repository.name}: 0 paths pushed, nothing written: all of it is listed and recorded"
    else:
        sent = f"{counted(len(pushed), 'path')} pushed ({size}, {packed} compressed)"
        relisted = {info.store_path for info, _ in plan.relist}
        signed = sum(narinfo.store_path in relisted for narinfo in published.listed)
        more = f", {counted(signed, 'path')} signed" if signed else ""
        line = f"{repository.name}: {sent}{more} in {took}"
    if not published.is_index_confirmed:
        complain("others write the index at the same time; what was pushed is found by its tag")
    keys = [str(key) for key in settings.options.public_keys]
    if settings.actions is not None and keys:
        settings.actions.set_output(PUBLIC_KEY_OUTPUT, " ".join(keys))
    report_json(settings, repository, plan, published, left_out, outputs=outputs, seconds=seconds)
    if not settings.is_json:
        say(line, *(f"public key: {key}" for key in keys))
    if settings.public_key_file is not None:
        write_public_keys(settings.public_key_file, keys)
    if settings.actions is not None:
        summary = PublishSummary(repository.name, show_plan(plan, repository), outputs, pushed, seconds, keys)
        settings.actions.append_summary(render_summary(summary))


def write_public_keys(path: Path, keys: Iterable[str]) -> None:
    """Write public keys, one a line; a file that holds them already is not touched.

    Raises:
        UsageError: there is no key, or the file cannot be written.
    """
    text = "".join(f"{key}\n" for key in keys)
    if not text:
        raise UsageError("--public-key-file: there is no signing key; set NIXCACHE_SIGNING_KEY_FILE")
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            file = RootedPath.of(path)
            write_file(file, [text.encode()], file.parent)
    except UnicodeDecodeError:
        raise UsageError(f"--public-key-file: {path}: it is not text in UTF-8") from None
    except OSError as error:
        raise UsageError(f"--public-key-file: {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--public-key-file: {path}: {error}") from None


def _own_run() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{now():%Y%m%dT%H%M%SZ}".replace(" ", "_")


def _parse_jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_JOBS):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MAX_JOBS}, got {text[:40]!r}")
    return int(text)


def _and_more(number: int) -> str:
    return f" (and {number} more)" if number else ""

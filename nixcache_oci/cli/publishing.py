"""What ``publish``, ``push`` and ``import`` share: flags, settings, and how they run."""

import argparse
import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import in_background
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import opened, run_async
from nixcache_oci.cli.console import show_foreign, without_colours
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.verb import FAILED, WRONG_USAGE, number
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.program import OnLine
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import Error, UsageError
from nixcache_oci.publisher.contents import ContentsReader
from nixcache_oci.publisher.options import COMPRESSIONS, NarEncoding, PublishOptions
from nixcache_oci.publisher.publisher import Publisher
from nixcache_oci.settings import variables
from nixcache_oci.settings.file_config import signing_keys, upstream_urls
from nixcache_oci.settings.repository_config import (
    RepositoryConfig,
    index_dir,
    repository_config,
    segment_options,
)
from nixcache_oci.settings.values import Values, Variable, add_flags

VARIABLES: Final = (
    *variables.REPOSITORY_VARIABLES,
    *variables.PUBLISH_VARIABLES,
    variables.UPSTREAM,
    variables.UPSTREAM_FILE,
    variables.LOG_LEVEL,
)

UPSTREAM_KEY_NAME: Final = "cache.nixos.org-1"

_MAX_JOBS: Final = 64
_MAX_WARNINGS: Final = 1000  # of a program, remembered so that none is shown twice
_IF_INTERRUPTED: Final = (
    "what was sent is kept, and listed only if all of it was; run the same command again to send the rest"
)


def add_publish_flags(parser: argparse.ArgumentParser, *more: Variable[object], is_once: bool = True) -> None:
    """Describe the arguments of the verbs that publish from the local store, and ``more`` settings.

    Without ``is_once``, those are left out that only one publish can have.
    """
    parser.add_argument(
        "--compression",
        choices=list(COMPRESSIONS),
        default="zstd",
        help="compression of NARs [default: zstd]",
    )
    levels = ", ".join(f"{name} {usual}" for name, (_, usual) in COMPRESSIONS.items() if usual)
    parser.add_argument("--level", type=int, metavar="N", help=f"of the compression [default: {levels}]")
    parser.add_argument(
        "--verify-upstream",
        action="store_true",
        help="ask the upstreams whether they really have such paths, and push those they lack",
    )
    add_sending_flags(parser, variables.MERGE, *more, is_once=is_once)


def add_sending_flags(
    parser: argparse.ArgumentParser,
    *more: Variable[object],
    usual_jobs: str = "one per core",
    is_once: bool = True,
) -> None:
    """Describe the arguments of the verbs that send store objects, wherever these come from."""
    if is_once:
        _add_flags_of_one_publish(parser)
    else:
        parser.set_defaults(dry_run=False, json=False, strict=False, public_key_file=None)
    parser.add_argument(
        "--scope",
        metavar="NAME",
        help="group of publishes in which a later one supersedes this one; no spaces",
    )
    parser.add_argument(
        "--jobs",
        type=number(1, _MAX_JOBS),
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
        "--allow-unsigned",
        action="store_true",
        help="publish unsigned paths; Nix refuses them unless told otherwise",
    )
    parser.add_argument(
        "--new-key",
        action="store_true",
        help="sign with a key that the cache has not recorded yet; clients must trust it, too",
    )
    add_flags(parser, (*VARIABLES, *more))


def _add_flags_of_one_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show what would be pushed, and push nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--strict", action="store_true", help="publish nothing unless everything can be published"
    )
    parser.add_argument(
        "--public-key-file",
        type=Path,
        metavar="FILE",
        help="write the public keys to FILE, one per line, if they changed",
    )


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """What a publisher was told, parsed.

    Attributes:
        nix_environment: for Nix, which gets a part of it: no secret of ours.
        upstreams: base URLs.
        index_dir: where tables are kept.
        run: names this run in records.
        began: monotonic seconds.
    """

    values: Values
    location: RepositoryConfig
    nix_environment: Mapping[str, str]
    options: PublishOptions
    upstreams: tuple[str, ...]
    index_dir: Path
    actions: GithubActions | None
    run: str
    began: float = field(default_factory=time.monotonic)

    @property
    def flags(self) -> argparse.Namespace:
        """The parsed arguments."""
        return self.values.flags

    @property
    def progress(self) -> AbstractContextManager[Progress]:
        """What shows how far the work has come."""
        return showing(self.actions, is_quiet=self.flags.quiet)

    def nix(self, options: Sequence[tuple[str, str]] = ()) -> Nix:
        """Make a Nix whose messages are shown as another program's."""
        return Nix(self.nix_environment, choose_on_line(self.actions, is_quiet=self.flags.quiet), options)

    def opened(self) -> AbstractAsyncContextManager[Repository]:
        """Open the repository, for pushing unless this is a dry run."""
        return opened(self.location, self.values, push=not self.flags.dry_run)


def nix_environment(values: Values) -> dict[str, str]:
    """Return the environment that Nix's own is chosen from; ``--pass-env`` counts like its variable.

    Raises:
        UsageError: it names a variable that must not be passed on.
    """
    values.get(variables.PASS_ENV)
    return values.merged_environment((variables.PASS_ENV,))


def choose_on_line(actions: GithubActions | None, *, is_quiet: bool) -> OnLine:
    """Choose what shows the lines of Nix, repeated warnings once; when quiet, only warnings and errors."""
    show = show_foreign if actions is None else actions.log.show
    warned: set[str] = set()

    def show_some(line: str) -> None:
        plain = without_colours(line)
        if plain.startswith("warning:"):
            if plain in warned:
                return
            if len(warned) < _MAX_WARNINGS:
                warned.add(plain)
        elif is_quiet and not plain.startswith("error:"):
            return
        show(line)

    return show_some


def publish_settings(values: Values) -> PublishSettings:
    """Parse what the publisher is told.

    Raises:
        UsageError: a value that cannot be used.
    """
    flags = values.flags
    actions = GithubActions.from_environment(values.environment)
    location = repository_config(values)
    given = flags.upstream_key_name
    names = [UPSTREAM_KEY_NAME] if given is None else given
    segments = segment_options(values, location, values.get(variables.REPO))
    options = PublishOptions(
        keys=signing_keys(values),
        upstream_key_names=frozenset(name for name in names if name),
        verify_upstream=flags.verify_upstream,
        encoding=NarEncoding(flags.compression, flags.level),
        segments=segments,
        jobs=flags.jobs or os.cpu_count() or 1,
        is_strict=flags.strict,
        allow_unsigned=flags.allow_unsigned,
        allow_new_key=flags.new_key,
        is_merging=values.get(variables.MERGE),
        source=actions.source if actions is not None else None,
    )
    return PublishSettings(
        values,
        location,
        nix_environment(values),
        options,
        upstreams=upstream_urls(values),
        index_dir=index_dir(values),
        actions=actions,
        run=(actions.run_id if actions is not None else None) or own_run(),
    )


def own_run() -> str:
    """Name a run that no workflow names, for records."""
    return f"{socket.gethostname()}-{os.getpid()}-{now():%Y%m%dT%H%M%SZ}".replace(" ", "_")


@asynccontextmanager
async def publishing(
    settings: PublishSettings, repository: Repository, nix: Nix, progress: Progress
) -> AsyncIterator[Publisher]:
    """Put a publisher together."""
    async with AsyncExitStack() as stack:
        upstreams = Upstreams(open_upstreams(settings.upstreams, settings.values.environment))
        stack.push_async_callback(upstreams.close)
        folder = await asyncio.to_thread(IndexFolder, settings.index_dir, repository.name)
        # Beside Nix, which is asked for the store and the closure: a distant registry takes as long.
        reading = await stack.enter_async_context(
            in_background(ContentsReader(repository, folder, progress).read())
        )
        store = await LocalStore.open(nix)
        yield Publisher(repository, store, folder, upstreams, settings.options, progress, reading)


def run_publisher(main: Coroutine[object, object, int], actions: GithubActions | None) -> int:
    """Run a publisher; an error annotates the workflow, if there is one."""
    try:
        return run_async(main, _IF_INTERRUPTED)
    except Error as error:
        if actions is None:
            raise
        actions.annotate("error", str(error))
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    finally:
        if actions is not None:
            actions.log.resume()


def check_strict(settings: PublishSettings, problems: Sequence[str]) -> None:
    """Refuse to go on if there is a problem and everything was to be published.

    Raises:
        Error: ``--strict``, and there is a problem.
    """
    if settings.options.is_strict and problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Error(f"--strict: nothing is published, for {problems[0]}{more}")

"""What the verbs that publish as paths come share: flags, and the queue with its publishing handed in."""

import argparse
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.console import complain
from nixcache_oci.cli.publish_report import describe_plan
from nixcache_oci.cli.publishing import PublishSettings, add_publish_flags, publish_settings, publishing
from nixcache_oci.cli.push import plan_valid
from nixcache_oci.cli.verb import number
from nixcache_oci.clients.local_store.database import StoreDatabase, find_database
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.publisher.draft import Published
from nixcache_oci.queue.batch_record import make_batch_record
from nixcache_oci.queue.folder import QueueFolder
from nixcache_oci.queue.pace import Pace
from nixcache_oci.queue.runner import Runner, Watch
from nixcache_oci.queue.watching import Watcher
from nixcache_oci.settings.values import Values
from nixcache_oci.settings.variables import QUEUE_DIR
from nixcache_oci.wording import counted, format_size

_MAX_WAIT_SECONDS = 3600
_PACE = Pace()


def add_queue_flags(parser: argparse.ArgumentParser, *, has_folder: bool = True) -> None:
    """Describe the arguments of whoever publishes what is queued.

    Without ``has_folder``, the queue is nobody else's, and all that it gets comes of watching the store.
    """
    parser.add_argument(
        "--wait",
        type=number(0, _MAX_WAIT_SECONDS),
        default=round(_PACE.quiet),
        metavar="SECONDS",
        help="publish once no path has come for this long, at the latest a minute after the first "
        "[default: %(default)s]",
    )
    if has_folder:
        parser.add_argument(
            "--watch",
            action="store_true",
            help="publish whatever becomes valid in this store, too: built, substituted or added",
        )
        parser.add_argument(
            "--keep-used",
            action="store_true",
            help="when the queue is drained, record what this store got from the cache meanwhile, so that gc "
            "keeps that as well",
        )
        add_publish_flags(parser, QUEUE_DIR, is_once=False)
    else:
        parser.set_defaults(watch=True, keep_used=False)
        add_publish_flags(parser, is_once=False)


@dataclass(slots=True)
class Queueing:
    """A queue, and how its batches are published.

    Attributes:
        scope: of the batches' records.
        tell: shows a line.
        batches: how many were published.
    """

    settings: PublishSettings
    folder: QueueFolder
    scope: str
    tell: Callable[[str], None] = complain
    batches: int = field(default=0, init=False)
    _recorded: set[StorePath] = field(default_factory=set, init=False)  # in batches, where it matters

    @classmethod
    def of(cls, values: Values, folder: QueueFolder) -> "Queueing":
        """Parse the settings; UsageError for one that cannot be used."""
        settings = publish_settings(values)
        scope = values.flags.scope or f"queue/{socket.gethostname() or 'unknown'}"
        try:
            PublishRecord(scope, settings.run, now())
        except FormatError as error:
            raise UsageError(f"--scope: {error}") from None
        return cls(settings, folder, scope)

    @property
    def pace(self) -> Pace:
        """When a batch is due."""
        return Pace(quiet=self.settings.flags.wait)

    @asynccontextmanager
    async def runner(self, *, is_draining: bool = False) -> AsyncIterator[Runner]:
        """Put the queue together; whoever runs it holds the folder's lock.

        While draining, the store is watched if it was before.
        """
        store = await LocalStore.open(self.settings.nix())
        with closing(StoreDatabase(find_database(store))) as database:
            watch = None
            if self.settings.flags.watch or (is_draining and self.folder.was_watching):
                names = self.settings.options.upstream_key_names
                # What an upstream signed may still be missing there.
                left_out = frozenset[str]() if self.settings.options.verify_upstream else names
                watch = Watcher(self.folder.spool, self.folder.mark, database, left_out, self.tell).look
                await watch()
            else:
                self.folder.stop_watching()
            find_used = None
            if self.is_keeping_used:
                find_used = await self._begin_used(database)
            yield Runner(self.folder, store, self.publish, self.tell, self.pace, watch, find_used)

    async def _begin_used(self, database: StoreDatabase) -> Watch:
        spool, mark = self.folder.spool, self.folder.used_mark
        used = Watcher(spool, mark, database, frozenset(), self.tell, self._find_cached)
        try:
            await used.begin()
        except (Error, OSError) as error:
            self.tell(f"warning: what is used of the cache will not be recorded: {error}")

        async def find_used() -> None:
            await used.look()
            # No later look sees these paths again.
            self._recorded.clear()

        return find_used

    @property
    def is_keeping_used(self) -> bool:
        """Whether to record what the store got from the cache, where publishing it does not anyway."""
        return bool(self.settings.flags.keep_used) and not self.settings.flags.watch

    async def _find_cached(self, paths: Sequence[StorePath]) -> list[StorePath]:
        """Choose what the cache lists already, and this queue has not recorded."""
        settings = self.settings
        asked = [path for path in paths if path not in self._recorded]
        with settings.progress as progress:
            async with (
                settings.opened() as repository,
                publishing(settings, repository, settings.nix(), progress) as publisher,
            ):
                invalid = set(await publisher.store.find_invalid(asked))
                valid = [path for path in asked if path not in invalid]
                plan = await publisher.plan(valid, with_closure=False)
        return [info.store_path for info in plan.cached]

    async def publish(self, paths: Sequence[StorePath]) -> None:
        """Publish one batch; everything is opened anew: a token may have changed since the last."""
        settings = self.settings
        self.batches += 1
        # A job in CI is one run, whose batches do not supersede each other.
        run = settings.run if settings.actions is not None else f"{settings.run}-{self.batches}"
        with settings.progress as progress:
            async with (
                settings.opened() as repository,
                publishing(settings, repository, settings.nix(), progress) as publisher,
            ):
                plan, _, gone = await plan_valid(publisher, paths, with_closure=True)
                for path, reason in gone.items():
                    self.tell(f"{path}: left out: {reason}")
                progress.note(describe_plan(plan, repository.name))
                record = make_batch_record(plan.listed, self.scope, run, now())
                if record is None:
                    return
                published = await publisher.publish(plan, [record])
                await publisher.merge(published)
                if self.is_keeping_used:
                    self._recorded |= {info.store_path for info in plan.listed}
        self._report(repository.name, published)

    def _report(self, cache: str, published: Published) -> None:
        for name, reason in published.failed.items():
            self.tell(f"warning: {name}: not published: {reason}")
        if not published.is_needless:
            size = format_size(sum(one.nar_size for one in published.listed))
            self.tell(f"{cache}: {counted(len(published.listed), 'path')} published ({size})")

"""The queue at work: it gathers what the spool names, and has it published in batches.

An event leaves the spool once its paths are published, or gone from the store; so nothing that was queued is
lost when the process ends. Until then, links keep the paths from Nix's garbage collector.
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Final

from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import Error, StoreError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.queue.folder import QueueFolder, QueueState
from nixcache_oci.queue.pace import Pace, wait_after
from nixcache_oci.wording import counted, format_duration

LOOK_SECONDS: Final = 0.5
"""Between two looks at the spool, and at the store where that is watched."""

_DRAIN_SECONDS: Final = 0.2  # between two looks of whoever waits
MAX_TOLD: Final = 10
"""Lines about what was dropped, of one look."""

_GONE: Final = "it is not valid in this store any more"

Publish = Callable[[Sequence[StorePath]], Awaitable[None]]
"""Publishes valid paths with their closures; Error if it failed."""

Watch = Callable[[], Awaitable[None]]
"""Adds what is new in the store to the spool; Error if it cannot."""


class Runner:
    """Publishes what is queued; whoever runs it holds the folder's lock.

    Args:
        folder: of the queue.
        store: that the paths are in.
        publish: publishes a batch.
        tell: shows a line: what was dropped, what failed.
        pace: when a batch is due.
        watch: where the store is watched.
        find_used: adds what the store got from the cache, where that is recorded; once a drain.
    """

    def __init__(
        self,
        folder: QueueFolder,
        store: LocalStore,
        publish: Publish,
        tell: Callable[[str], None],
        pace: Pace,
        watch: Watch | None = None,
        find_used: Watch | None = None,
    ) -> None:
        self._folder = folder
        self._store = store
        self._publish = publish
        self._tell = tell
        self._pace = pace
        self._watch = watch
        self._find_used = find_used
        self._look_failure: str | None = None  # told, so that each look does not tell it again
        self._events: set[str] = set()
        self._paths: dict[StorePath, None] = {}
        self._first = self._last = 0.0  # when they came, in monotonic seconds
        self._state = folder.read_state()
        self._retry_at = 0.0
        self._is_hurried = False
        self._looks = 0

    async def run(self, *, until_empty: bool = False) -> None:
        """Publish what comes, for ever, or until nothing is left, without waiting for quiet."""
        await asyncio.to_thread(self._prepare)
        while True:
            is_hurried = until_empty or await asyncio.to_thread(self._folder.is_hurried)
            if is_hurried and not self._is_hurried:
                self._is_hurried, self._retry_at = True, 0.0
                await self._try_find_used()
            has_seen_all = await self._try_look()
            if is_hurried:
                await asyncio.to_thread(self._folder.end_hurry)
            if not self._paths:
                self._is_hurried = False
                if until_empty and has_seen_all:
                    return
            if self._is_due():
                await self._publish_batch()
            else:
                await asyncio.sleep(LOOK_SECONDS)

    def _prepare(self) -> None:
        self._folder.spool.make()
        # Of a former run: its events are read again.
        shutil.rmtree(self._folder.links, ignore_errors=True)

    def _is_due(self) -> bool:
        now_seconds = time.monotonic()
        if not self._paths or now_seconds < self._retry_at:
            return False
        return self._is_hurried or self._pace.is_due(self._first, self._last, len(self._paths), now_seconds)

    async def _try_look(self) -> bool:
        """Look, and tell whether all was seen; what cannot be read now is read by a later look."""
        has_seen_all, failure = False, None
        try:
            if self._watch is not None:
                await self._watch()
        except (Error, OSError) as error:
            failure = f"the store cannot be watched: {error}"
        try:
            has_seen_all = await self._look()
        except (Error, OSError) as error:
            failure = f"the queue cannot be read: {error}"
        if failure is not None and failure != self._look_failure:
            self._tell(failure)
        self._look_failure = failure
        return has_seen_all and failure is None

    async def _try_find_used(self) -> None:
        """Queue what is used; nobody is kept waiting for what only gc wants to know."""
        if self._find_used is not None:
            try:
                await self._find_used()
            except (Error, OSError) as error:
                self._tell(f"warning: what was used of the cache is not recorded: {error}")

    async def _look(self) -> bool:
        """Gather new events, and tell whether there were none."""
        room = self._pace.most_paths - len(self._paths)
        read, store_dir = self._folder.spool.read, self._store.store_dir
        events = await asyncio.to_thread(lambda: list(read(self._events, max(room, 0), store_dir)))
        if not events:
            return True
        self._tell_some([problem for event in events for problem in event.problems])
        named = dict.fromkeys(path for event in events for path in event.paths)
        derivations = dict.fromkeys(path for event in events for path in event.derivations)
        if derivations:
            named |= dict.fromkeys(await self._store.find_outputs(list(derivations)))
        fresh = await self._keep([path for path in named if path not in self._paths])
        if not self._paths:
            self._first = time.monotonic()
        self._last = time.monotonic()
        self._paths |= dict.fromkeys(fresh)
        self._events |= {event.name for event in events}
        if not self._paths:
            await self._forget()
        return False

    async def _keep(self, paths: list[StorePath]) -> list[StorePath]:
        """Keep paths from the garbage collector; returns those that are valid, and names the others."""
        gone: set[StorePath] = set()
        try:
            gone = await self._add_links(paths)
        except (StoreError, OSError) as error:
            self._tell(f"queued paths are not kept from Nix's garbage collector: {error}")
        self._tell_some([f"{path}: dropped: {_GONE}" for path in paths if path in gone])
        return [path for path in paths if path not in gone]

    def _tell_some(self, dropped: Sequence[str]) -> None:
        for line in dropped[:MAX_TOLD]:
            self._tell(line)
        if len(dropped) > MAX_TOLD:
            self._tell(f"{len(dropped) - MAX_TOLD} more dropped")

    async def _add_links(self, paths: list[StorePath]) -> set[StorePath]:
        """Make links that keep these paths; returns those that are gone."""
        gone: set[StorePath] = set()
        while left := [path for path in paths if path not in gone]:
            self._looks += 1
            try:
                await self._store.add_gc_roots(self._folder.links / f"{self._looks}", left)
            except StoreError:
                invalid = await self._store.find_invalid(left)
                if not invalid:
                    raise
                gone |= set(invalid)
            else:
                break
        return gone

    async def _publish_batch(self) -> None:
        paths = list(self._paths)
        try:
            await self._publish(paths)
        except (Error, OSError) as error:
            await self._drop_invalid()
            if self._paths:
                self._fail(error)
                await self._save_state()
            return
        self._state = QueueState(published=format_time(now()), published_paths=len(paths))
        await self._forget()
        await self._save_state()

    def _fail(self, error: Exception) -> None:
        failures = self._state.failures + 1
        wait = wait_after(failures)
        self._retry_at = time.monotonic() + wait
        next_try = format_time(now() + timedelta(seconds=wait))
        self._state = replace(self._state, failures=failures, failure=str(error), next_try=next_try)
        left = counted(len(self._paths), "path")
        self._tell(f"{error}; still queued: {left}, next try in {format_duration(wait)}")

    async def _drop_invalid(self) -> None:
        """Drop what is gone from the store: that may be why the batch failed."""
        with suppress(Error):  # else Nix is what fails
            invalid = await self._store.find_invalid(self._paths)
            self._tell_some([f"{path}: dropped: {_GONE}" for path in invalid])
            for path in invalid:
                del self._paths[path]
            if not self._paths:
                await self._forget()

    async def _forget(self) -> None:
        """Remove the links of a batch that is done, and its events."""
        events, self._events = self._events, set()
        self._paths.clear()
        # Links first: who sees that nothing is queued may count on it that nothing is kept.
        await asyncio.to_thread(shutil.rmtree, self._folder.links, ignore_errors=True)
        await asyncio.to_thread(self._folder.spool.remove, events)

    async def _save_state(self) -> None:
        try:
            await asyncio.to_thread(self._folder.write_state, self._state)
        except OSError as error:
            self._tell(f"status cannot be written: {error}")


async def drain(folder: QueueFolder, make_runner: Callable[[], AbstractAsyncContextManager[Runner]]) -> None:
    """Wait until nothing is queued; where nobody publishes, do that here. It may wait for ever."""
    await asyncio.to_thread(folder.hurry)
    while True:
        with folder.locked(0) as is_ours:
            if is_ours:
                async with make_runner() as runner:
                    await runner.run(until_empty=True)
                return
        if not await asyncio.to_thread(folder.is_hurried) and not await asyncio.to_thread(folder.spool.names):
            return
        await asyncio.sleep(_DRAIN_SECONDS)

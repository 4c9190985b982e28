"""What long work shows: a bar on a terminal, and elsewhere a line every few seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final, TextIO

from rich.console import Console

from nixcache_oci.cache.progress import Progress
from nixcache_oci.cli.console import as_line
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress_bars import BRIEF_SECONDS, Bars, logging_above
from nixcache_oci.cli.progress_stage import Display, RunningStage
from nixcache_oci.wording import format_duration

LINE_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 60.0
"""While nothing happens, lines come less and less often, down to one in so long a time."""

_LOOK_SECONDS: Final = 0.2


@contextmanager
def show_progress(
    stream: TextIO,
    *,
    is_terminal: bool,
    actions: GithubActions | None,
    is_quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show what long work tells.

    Args:
        stream: standard error: standard output is for results.
        is_terminal: whether a bar can be drawn.
        actions: where this runs as a GitHub workflow: warnings annotate the run, and there is no bar.
        is_quiet: whether warnings alone are shown.
        clock: monotonic seconds.
    """
    console = Console(file=stream, force_terminal=is_terminal, force_jupyter=False)
    with ExitStack() as stack:
        if is_quiet:
            display: Display = _Warnings(stream, actions, clock)
        elif not is_terminal or console.is_dumb_terminal or actions is not None:
            display = _Lines(stream, actions, clock)
        else:
            display = Bars(console, clock)
            stack.enter_context(logging_above(console, stream))
        stack.enter_context(_watched(display))
        yield display


def showing(actions: GithubActions | None, *, is_quiet: bool) -> AbstractContextManager[Progress]:
    """Show what long work tells on standard error; see ``show_progress``."""
    return show_progress(sys.stderr, is_terminal=sys.stderr.isatty(), actions=actions, is_quiet=is_quiet)


@contextmanager
def _watched(display: "Display") -> Iterator[None]:
    """Look at the clock beside what is told: one blob can be on its way for many minutes."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            display.look()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


class _Lines(Display):
    """Writes lines, without anything that only a terminal understands."""

    def __init__(self, stream: TextIO, actions: GithubActions | None, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._stream = stream
        self._actions = actions
        self._told_at = clock()

    def note(self, line: str) -> None:
        self._write(line)

    def _write(self, line: str) -> None:
        # A log that is full or that nobody reads is no reason to give up what it tells of.
        with self.lock, suppress(OSError):
            self._stream.write(f"{as_line(line)}\n")
            self._stream.flush()

    def warn(self, line: str) -> None:
        if self._actions is not None:
            self._actions.warning(line)
        else:
            self._write(f"warning: {line}")

    def begin(self, stage: RunningStage) -> None:
        stage.told_at = self._told_at  # many short stages are as long a silence as one long one

    def show(self, stage: RunningStage) -> None:
        since, pause = stage.told_at, LINE_SECONDS
        if not stage.is_changed:
            since = max(stage.told_at, stage.changed_at)
            pause = min(max(since - stage.changed_at, LINE_SECONDS), QUIET_SECONDS)
        if self.clock() - since >= pause:
            self._tell(stage)

    def end(self, stage: RunningStage) -> None:
        if stage.is_changed and self.clock() - stage.began >= BRIEF_SECONDS:
            self._tell(stage)

    def look(self) -> None:
        with self.lock:
            for stage in self._stages:
                self.show(stage)

    def _tell(self, stage: RunningStage) -> None:
        now = self.clock()
        line = stage.line
        if not stage.is_changed:
            line += f", nothing finished for {format_duration(now - stage.changed_at)}"
        self.note(line)
        stage.is_changed = False
        stage.told_at = self._told_at = now


class _Warnings(_Lines):
    """Writes warnings alone."""

    def note(self, line: str) -> None:
        pass

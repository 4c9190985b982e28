"""What long work shows: bars on a terminal, and elsewhere a line every few seconds."""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from nixcache_oci.cache.progress import Progress
from nixcache_oci.cli.console import as_line
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress_stage import Display, RunningStage
from nixcache_oci.wording import format_duration

BRIEF_SECONDS: Final = 1.0
"""What takes no longer shows nothing."""

LINE_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 60.0
"""While nothing happens, lines come less and less often, down to one in this time."""

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
    """Show the progress of long work.

    Args:
        stream: standard error.
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
            display = _Bars(console, clock)
            stack.enter_context(_logging_above(console, stream))
        stack.enter_context(_watched(display))
        yield display


def showing(actions: GithubActions | None, *, is_quiet: bool) -> AbstractContextManager[Progress]:
    """Show the progress of long work on standard error."""
    return show_progress(sys.stderr, is_terminal=sys.stderr.isatty(), actions=actions, is_quiet=is_quiet)


@contextmanager
def _watched(display: Display) -> Iterator[None]:
    """Refresh the display by the clock as well: one blob can take many minutes."""
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
    """Writes plain lines."""

    def __init__(self, stream: TextIO, actions: GithubActions | None, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._stream = stream
        self._actions = actions
        self._told_at = clock()

    def note(self, line: str) -> None:
        self._write(line)

    def _write(self, line: str) -> None:
        # A log that is full, or that nobody reads, is no reason to end the work.
        with self.lock, suppress(OSError):
            self._stream.write(f"{as_line(line)}\n")
            self._stream.flush()

    def warn(self, line: str) -> None:
        if self._actions is not None:
            self._actions.annotate("warning", line)
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


class _Bars(Display):
    """Draws a bar for each stage; lines appear above it."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._console = console
        self._began = clock()
        self._bar: RichProgress | None = None
        self._tasks: dict[RunningStage, TaskID] = {}

    def note(self, line: str) -> None:
        _print_above(self._console, f"{as_line(line)}\n")

    def begin(self, stage: RunningStage) -> None:
        if self._bar is not None:
            self._add(self._bar, stage)
        else:
            self.look()

    def show(self, stage: RunningStage) -> None:
        self.look()
        if self._bar is not None and stage in self._tasks:  # else a thread tells of what is over
            self._bar.update(self._tasks[stage], completed=stage.share[0])

    def end(self, stage: RunningStage) -> None:
        if self._bar is None:
            return
        task = self._tasks.pop(stage)
        if self._tasks:
            self._bar.remove_task(task)
        else:
            # Taken away, and the cursor shown again: results would be drawn over.
            self._bar.stop()
            self._bar = None

    def look(self) -> None:
        with self.lock:
            if self._bar is None and self._stages and self.clock() - self._began >= BRIEF_SECONDS:
                self._bar = _make_bar(self._console, self.clock)
                for stage in self._stages:
                    self._add(self._bar, stage)
                self._bar.start()

    def _add(self, bar: RichProgress, stage: RunningStage) -> None:
        done, total = stage.share
        self._tasks[stage] = bar.add_task(stage.doing, total=total, completed=done, stage=stage)


def _make_bar(console: Console, clock: Callable[[], float]) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        _Amount(Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        expand=True,
        transient=True,
        get_time=clock,
        redirect_stdout=False,  # it has the results, and may go elsewhere
    )


class _Amount(ProgressColumn):
    """What is done, and how fast."""

    def render(self, task: Task) -> Text:
        stage: RunningStage = task.fields["stage"]
        return Text(stage.amount)


@contextmanager
def _logging_above(console: Console, stream: TextIO) -> Iterator[None]:
    """Let log lines appear above the bar, too: their handlers hold the stream, and would write into it."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream
    ]
    for handler in handlers:
        handler.setStream(_Above(console))
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(stream)


class _Above(io.TextIOBase):
    """Takes whole lines, as logging writes them."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        _print_above(self._console, text)
        return len(text)


def _print_above(console: Console, text: str) -> None:
    # As text, in which nothing stands for a colour or an emoji, and in lines that are not broken anew.
    console.print(Text(text), end="", soft_wrap=True)

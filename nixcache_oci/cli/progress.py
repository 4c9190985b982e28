"""What a publish shows while it works: a bar on a terminal, and elsewhere a line every few seconds."""

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from nixcache_oci.cli.console import as_line
from nixcache_oci.cli.format import format_duration, format_share, format_size
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.publisher.progress import Progress

LINE_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 60.0
"""After which a line shows that the publish is alive, though nothing was finished."""

_LOOK_SECONDS: Final = 1.0


@contextmanager
def show_progress(
    stream: TextIO,
    *,
    is_terminal: bool,
    actions: GithubActions | None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show what a publish tells.

    Args:
        stream: standard error: standard output is for results.
        is_terminal: whether a bar can be drawn.
        actions: where this runs as a GitHub workflow: warnings annotate the run, and there is no bar.
        clock: monotonic seconds.
    """
    console = Console(file=stream, force_terminal=is_terminal, force_jupyter=False)
    if not is_terminal or console.is_dumb_terminal or actions is not None:
        with _showing_lines(_LineProgress(stream, actions, clock)) as lines:
            yield lines
        return
    bar = _make_bar(console, clock)
    with _logging_above(console, stream):
        try:
            yield _BarProgress(bar)
        finally:
            # Whatever ended the block, the bar is taken away and the cursor shown again.
            bar.stop()


class _Round:
    """How far one round of a publish has come; sizes are bytes of NARs, uncompressed."""

    def __init__(self, paths: int = 0, size: int = 0) -> None:
        self.paths = paths
        self.size_done = 0
        self._size = size
        self._done: set[str] = set()

    def staged(self, base_name: str, size: int) -> bool:
        """Count a store object; False where it was counted: what a collector took is staged again."""
        if base_name in self._done:
            return False
        self._done.add(base_name)
        self.size_done += size
        return True

    @property
    def amount(self) -> str:
        noun = "path" if self.paths == 1 else "paths"
        return f"{len(self._done):,} of {self.paths:,} {noun}, {format_share(self.size_done, self._size)}"


class _LineProgress:
    """Writes lines, without anything that only a terminal understands; a thread may look at the clock."""

    def __init__(self, stream: TextIO, actions: GithubActions | None, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._actions = actions
        self._clock = clock
        self._lock = threading.RLock()
        self._is_changed = False
        self._began = self._told_at = self._changed_at = clock()
        self._sent = 0
        self._round = _Round()

    def note(self, line: str) -> None:
        # A log that is full or that nobody reads is no reason to give up what it tells of.
        with self._lock, suppress(OSError):
            self._stream.write(f"{as_line(line)}\n")
            self._stream.flush()

    def warn(self, line: str) -> None:
        if self._actions is not None:
            self._actions.warning(line)
        else:
            self.note(f"warning: {line}")

    def begin(self, paths: int, size: int) -> None:
        with self._lock:
            self.finish()
            self._round = _Round(paths, size)
            self._sent = 0
            self._began = self._told_at = self._changed_at = self._clock()

    def staged(self, base_name: str, size: int) -> None:
        with self._lock:
            if self._round.staged(base_name, size):
                self._change()

    def sent(self, size: int) -> None:
        with self._lock:
            self._sent += size
            self._change()

    def skipped(self, _size: int) -> None:
        """Say nothing: its paths were counted when they were staged."""

    def look(self) -> None:
        """Write a line if it is time for one."""
        with self._lock:
            now = self._clock()
            if self._is_changed and now - self._told_at >= LINE_SECONDS:
                self._tell()
            elif self._round.paths and now - self._told_at >= QUIET_SECONDS:
                self._tell(f", nothing finished for {format_duration(now - self._changed_at)}")

    def finish(self) -> None:
        """Say how it ended, where that is not said yet."""
        with self._lock:
            if self._is_changed:
                self._tell()

    def _change(self) -> None:
        self._is_changed = True
        self._changed_at = self._clock()
        self.look()

    def _tell(self, more: str = "") -> None:
        now = self._clock()
        rate = format_size(self._round.size_done / max(now - self._began, 0.001))
        self.note(f"pushing: {self._round.amount}, {rate}/s, {format_size(self._sent)} sent{more}")
        self._is_changed, self._told_at = False, now


@contextmanager
def _showing_lines(lines: _LineProgress) -> Iterator[Progress]:
    """Look at the clock beside what is told: one blob can be on its way for many minutes."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            lines.look()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield lines
    finally:
        is_over.set()
        watcher.join()
        lines.finish()


class _BarProgress:
    """Draws a bar; lines appear above it."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._round = _Round()
        self._task = bar.add_task("pushing", round=self._round)

    def note(self, line: str) -> None:
        _print_above(self._bar.console, f"{as_line(line)}\n")

    def warn(self, line: str) -> None:
        self.note(f"warning: {line}")

    def begin(self, paths: int, size: int) -> None:
        self._round = _Round(paths, size)
        self._bar.reset(self._task, total=size, visible=paths > 0, round=self._round)
        if paths:
            # Not before: results that are printed until then would be drawn over.
            self._bar.start()

    def staged(self, base_name: str, size: int) -> None:
        if self._round.staged(base_name, size):
            self._bar.update(self._task, completed=self._round.size_done)

    def sent(self, _size: int) -> None:
        """Say nothing: the bar counts store objects, and moved when they were staged."""

    def skipped(self, _size: int) -> None:
        """As for what was sent."""


def _make_bar(console: Console, clock: Callable[[], float]) -> Bar:
    return Bar(
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
    """Paths and bytes done, and how fast."""

    def render(self, task: Task) -> Text:
        progress: _Round = task.fields["round"]
        rate = f", {format_size(task.speed)}/s" if task.speed else ""
        return Text(f"{progress.amount}{rate}")


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

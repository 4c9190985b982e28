"""What a publish shows while it works: a bar on a terminal, and elsewhere a line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from nixcache_oci.cli.format import format_size
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.publisher.progress import Progress

LINE_SECONDS: Final = 5.0


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
        actions: where this runs as a GitHub workflow: warnings annotate the run.
        clock: monotonic seconds.
    """
    if not is_terminal:
        lines = _LineProgress(stream, actions, clock)
        yield lines
        lines.finish()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Amount(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    # Whatever ends the block, the bar is taken away and the cursor shown again.
    with Bar(*columns, console=Console(file=stream, force_terminal=True), transient=True) as bar:
        yield _BarProgress(bar)


class _Counts:
    """How far a publish has come; sizes are bytes of NARs, uncompressed."""

    def __init__(self) -> None:
        self.paths = self.paths_done = 0
        self.size = self.size_done = 0

    def begin(self, paths: int, size: int) -> None:
        self.paths += paths
        self.size += size

    def staged(self, _base_name: str, size: int) -> None:
        self.paths_done += 1
        self.size_done += size

    @property
    def amount(self) -> str:
        return (
            f"{self.paths_done:,} of {self.paths:,} paths, "
            f"{format_size(self.size_done)} of {format_size(self.size)}"
        )


class _LineProgress(_Counts):
    """Writes lines, without anything that only a terminal understands."""

    def __init__(
        self, stream: TextIO, actions: GithubActions | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._stream = stream
        self._actions = actions
        self._clock = clock
        self._sent = 0
        self._told: str | None = None
        self._began = self._told_at = clock()

    def note(self, line: str) -> None:
        print(escape_unprintable(line), file=self._stream, flush=True)

    def warn(self, line: str) -> None:
        if self._actions is not None:
            self._actions.warning(line)
        else:
            self.note(f"warning: {line}")

    def begin(self, paths: int, size: int) -> None:
        super().begin(paths, size)
        self._began = self._told_at = self._clock()

    def staged(self, base_name: str, size: int) -> None:
        super().staged(base_name, size)
        self._tell_now_and_then()

    def sent(self, size: int) -> None:
        self._sent += size
        self._tell_now_and_then()

    def skipped(self, _size: int) -> None:
        self._tell_now_and_then()

    def finish(self) -> None:
        """Say how it ended, where anything was to be done."""
        if self.paths:
            self._tell()

    def _tell_now_and_then(self) -> None:
        if self._clock() - self._told_at >= LINE_SECONDS:
            self._tell()

    def _tell(self) -> None:
        seconds = max(self._clock() - self._began, 0.001)
        rate = format_size(self.size_done / seconds)
        line = f"pushing: {self.amount}, {format_size(self._sent)} sent"
        if line != self._told:
            self.note(f"{line}, {rate}/s")
        self._told, self._told_at = line, self._clock()


class _BarProgress(_Counts):
    """Draws a bar; lines appear above it."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("pushing", total=None, visible=False, counts=self)

    def note(self, line: str) -> None:
        self._bar.console.print(escape(escape_unprintable(line)), highlight=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        self.note(f"warning: {line}")

    def begin(self, paths: int, size: int) -> None:
        super().begin(paths, size)
        self._bar.update(self._task, total=self.size, visible=self.paths > 0)

    def staged(self, base_name: str, size: int) -> None:
        super().staged(base_name, size)
        self._bar.update(self._task, completed=self.size_done)

    def sent(self, _size: int) -> None:
        self._bar.refresh()

    def skipped(self, _size: int) -> None:
        self._bar.refresh()


class _Amount(ProgressColumn):
    """Paths and bytes done, and how fast."""

    def render(self, task: Task) -> Text:
        counts: _Counts = task.fields["counts"]
        rate = f", {format_size(task.speed)}/s" if task.speed else ""
        return Text(f"{counts.amount}{rate}")

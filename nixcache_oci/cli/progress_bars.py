"""Bars on a terminal, one for each stage of long work."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from nixcache_oci.cli.console import as_line
from nixcache_oci.cli.progress_stage import Display, RunningStage

BRIEF_SECONDS: Final = 1.0
"""What takes no longer than this shows nothing."""


class Bars(Display):
    """Draws a bar for each stage; lines appear above it."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._console = console
        self._began = clock()
        self._bar: Progress | None = None
        self._tasks: dict[RunningStage, TaskID] = {}

    def note(self, line: str) -> None:
        """Say one line."""
        _print_above(self._console, f"{as_line(line)}\n")

    def begin(self, stage: RunningStage) -> None:
        """Draw a bar, if there are any."""
        if self._bar is not None:
            self._add(self._bar, stage)
        else:
            self.look()

    def show(self, stage: RunningStage) -> None:
        """Move its bar."""
        self.look()
        if self._bar is not None and stage in self._tasks:  # else a thread tells of what is over
            self._bar.update(self._tasks[stage], completed=stage.share[0])

    def end(self, stage: RunningStage) -> None:
        """Take its bar away."""
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
        """Draw the bars as soon as the work is not brief."""
        with self.lock:
            if self._bar is None and self._stages and self.clock() - self._began >= BRIEF_SECONDS:
                self._bar = _make_bar(self._console, self.clock)
                for stage in self._stages:
                    self._add(self._bar, stage)
                self._bar.start()

    def _add(self, bar: Progress, stage: RunningStage) -> None:
        done, total = stage.share
        self._tasks[stage] = bar.add_task(stage.doing, total=total, completed=done, stage=stage)


def _make_bar(console: Console, clock: Callable[[], float]) -> Progress:
    return Progress(
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
def logging_above(console: Console, stream: TextIO) -> Iterator[None]:
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

"""What a publish shows while it works."""

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress import LINE_SECONDS, show_progress
from nixcache_oci.publisher.progress import Progress

MIB = 1024 * 1024
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(progress: Progress, clock: Clock, paths: int) -> None:
    progress.note("4 paths: 0 upstream, 0 cached, 4 to push (4.0 MiB)")
    progress.begin(paths, paths * MIB)
    for number in range(paths):
        clock.now += LINE_SECONDS / 2
        progress.staged(f"path-{number}", MIB)
        progress.sent(MIB // 2)


def test_lines_come_now_and_then() -> None:
    """A log gets a line every few seconds, without anything that only a terminal understands."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        work(progress, clock, 4)
        progress.warn("careful\x1b[31m")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("4 paths: ")
    assert [line for line in lines if line.startswith("pushing")] == [
        "pushing: 2 of 4 paths, 2.0 MiB of 4.0 MiB, 512.0 KiB sent, 409.6 KiB/s",
        "pushing: 4 of 4 paths, 4.0 MiB of 4.0 MiB, 1.5 MiB sent, 409.6 KiB/s",
        "pushing: 4 of 4 paths, 4.0 MiB of 4.0 MiB, 2.0 MiB sent, 409.6 KiB/s",
    ]
    assert "warning: careful" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_nothing_to_do_shows_nothing() -> None:
    """A publish with nothing new has a plan, and no progress."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        work(progress, clock, 0)
        progress.skipped(0)
    assert len(stream.getvalue().splitlines()) == 1


def test_a_warning_annotates_a_workflow(capsys: pytest.CaptureFixture[str]) -> None:
    """Once, and not a second time as a plain line."""
    stream = io.StringIO()
    with show_progress(stream, is_terminal=False, actions=GithubActions()) as progress:
        progress.warn("careful")
    assert capsys.readouterr().err == "::warning::careful\n"
    assert stream.getvalue() == ""


@contextmanager
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """A pseudo-terminal: what reads it, and what is written to."""
    reader, writer = os.openpty()
    try:
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            yield reader, stream
    finally:
        os.close(reader)


def read_all(reader: int) -> str:
    os.set_blocking(reader, False)
    shown = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reader, MIB):
            shown += piece
    return shown.decode()


def test_a_terminal_gets_a_bar() -> None:
    """Bytes, paths and rate; notes and warnings stay above it; the cursor comes back."""
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None) as progress:
            work(progress, Clock(), 4)
            progress.warn("careful [bold]x")
        stream.flush()
        shown = read_all(reader)
    assert "4 of 4 paths, 4.0 MiB of 4.0 MiB" in shown
    assert "warning: careful [bold]x" in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


def test_an_error_gives_the_terminal_back() -> None:
    """Ctrl-C, too: whoever is left without a cursor does not come again."""
    with terminal() as (reader, stream):
        with (
            contextlib.suppress(KeyboardInterrupt),
            show_progress(stream, is_terminal=True, actions=None) as progress,
        ):
            progress.begin(2, 2 * MIB)
            raise KeyboardInterrupt
        stream.flush()
        shown = read_all(reader)
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)

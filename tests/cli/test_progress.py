"""What long work shows."""

import contextlib
import io
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nixcache_oci.cache.progress import Progress
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress import BRIEF_SECONDS, LINE_SECONDS, QUIET_SECONDS, show_progress
from nixcache_oci.wording import format_duration

MIB = 1024 * 1024
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CLEAR_LINE, CURSOR_UP = "\x1b[2K", "\x1b[1A"


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(progress: Progress, clock: Clock, paths: int) -> None:
    progress.note("4 paths: 0 upstream, 0 cached, 4 to push (4.0 MiB)")
    with progress.stage("pushing", "path", paths, paths * MIB) as stage:
        for _ in range(paths):
            clock.now += LINE_SECONDS / 2
            stage.advance(1, MIB)
            stage.sent(MIB // 2)


def test_lines_come_now_and_then() -> None:
    """A log gets a line every few seconds, without anything that only a terminal understands."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        work(progress, clock, 4)
        progress.warn("careful\x1b[31m")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("4 paths: ")
    assert [line for line in lines if line.startswith("pushing")] == [
        "pushing: 2 of 4 paths, 2.0 of 4.0 MiB, 409.6 KiB/s, 512.0 KiB sent",
        "pushing: 4 of 4 paths, 4.0 of 4.0 MiB, 409.6 KiB/s, 1.5 MiB sent",
        "pushing: 4 of 4 paths, 4.0 of 4.0 MiB, 409.6 KiB/s, 2.0 MiB sent",
    ]
    assert "warning: careful" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize(
    ("count", "size", "line"),
    [
        (None, None, "reading: 3 narinfos, 2.0 MiB, 1.0 MiB/s"),
        (4, None, "reading: 3 of 4 narinfos, 2.0 MiB, 1.0 MiB/s"),
        (4, 4 * MIB, "reading: 3 of 4 narinfos, 2.0 of 4.0 MiB, 1.0 MiB/s"),
    ],
)
def test_a_total_is_told_where_it_is_known(count: int | None, size: int | None, line: str) -> None:
    """Nobody guesses how much there will be."""
    stream, clock = io.StringIO(), Clock()
    with (
        show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress,
        progress.stage("reading", "narinfo", count, size) as stage,
    ):
        clock.now += 2
        stage.advance(3)
        stage.advance(size=2 * MIB)
    assert stream.getvalue() == f"{line}\n"


def test_what_is_brief_shows_nothing() -> None:
    """Nor does a stage in which there is nothing to do."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        with progress.stage("reading", "table", 3) as stage:
            clock.now += BRIEF_SECONDS / 2
            stage.advance(3)
        work(progress, clock, 0)
        clock.now += 2 * LINE_SECONDS
    assert len(stream.getvalue().splitlines()) == 1, "the plan"


def test_many_brief_stages_are_no_silence() -> None:
    """What counts is how long nothing was said, whatever was done meanwhile."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        for number in range(20):
            with progress.stage(f"mirroring segment {number}", "blob", 1) as stage:
                clock.now += BRIEF_SECONDS / 2
                stage.advance(1)
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == [
        "mirroring segment 9",
        "mirroring segment 19",
    ]


def test_stages_beside_each_other_are_told_apart() -> None:
    """A cache of version 1 is converted while new paths are sent: each has its own numbers and rate."""
    stream, clock = io.StringIO(), Clock()
    with (
        show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress,
        progress.stage("pushing", "path", 1, 100 * MIB) as pushing,
    ):
        clock.now += 1
        pushing.advance(1, 100 * MIB)
        with progress.stage("converting", "blob", 8) as converting:
            clock.now += 4
            converting.advance(2)
    assert sorted(stream.getvalue().splitlines()) == [
        "converting: 2 of 8 blobs",
        "pushing: 1 of 1 path, 100.0 of 100.0 MiB, 20.0 MiB/s",
    ]


def test_quiet_shows_warnings_alone() -> None:
    """With `-q` there is neither plan nor progress."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=True, actions=None, is_quiet=True, clock=clock) as progress:
        work(progress, clock, 4)
        progress.warn("careful")
    assert stream.getvalue() == "warning: careful\n"


def test_what_ended_early_says_how_far_it_came() -> None:
    """A log that ends with an error shows what had been done by then."""
    stream, clock = io.StringIO(), Clock()
    with (
        contextlib.suppress(KeyboardInterrupt),
        show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress,
        progress.stage("pushing", "path", 2, 2 * MIB) as stage,
    ):
        clock.now += 1
        stage.advance(1, MIB)
        raise KeyboardInterrupt
    assert stream.getvalue() == "pushing: 1 of 2 paths, 1.0 of 2.0 MiB, 1.0 MiB/s\n"


def test_a_long_silence_is_broken() -> None:
    """One blob may be on its way for many minutes, and CI ends a job that seems to hang.

    The first line comes soon, and the longer nothing happens, the longer until the next.
    """
    stream, clock = io.StringIO(), Clock()
    with (
        show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress,
        progress.stage("pushing", "path", 2, 2 * MIB) as stage,
    ):
        stage.advance(1, MIB)
        clock.now += LINE_SECONDS
        wait_for(stream, "pushing: 1 of 2 paths, ")
        silences = [LINE_SECONDS * 2, LINE_SECONDS * 4, LINE_SECONDS * 8, LINE_SECONDS * 16]
        silences.append(silences[-1] + QUIET_SECONDS)
        for silence in silences:
            clock.now = 1000 + silence
            wait_for(stream, f", nothing finished for {format_duration(silence)}\n")
    assert len(stream.getvalue().splitlines()) == 1 + len(silences)


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.05)


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    """What is shown is not worth what it is shown of."""

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    clock = Clock()
    with show_progress(Full(), is_terminal=False, actions=None, clock=clock) as progress:
        work(progress, clock, 2)


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
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
            work(progress, clock, 4)
            progress.warn("careful [bold]x")
        stream.flush()
        shown = read_all(reader)
    assert "4 of 4 paths, 4.0 of 4.0 MiB, 409.6 KiB/s" in shown
    assert "warning: careful [bold]x" in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


def test_a_terminal_gets_a_bar_though_nothing_happens() -> None:
    """What a slow registry keeps waiting is not silent either."""
    clock = Clock()
    with (
        terminal() as (reader, stream),
        show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress,
        progress.stage("checking", "blob", 2),
    ):
        clock.now += BRIEF_SECONDS
        shown = ""
        while "0 of 2 blobs" not in shown:
            shown += os.read(reader, MIB).decode()


def test_stages_of_unknown_size_have_a_bar() -> None:
    """It moves, and promises nothing."""
    clock = Clock()
    with terminal() as (reader, stream):
        with (
            show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress,
            progress.stage("reading", "narinfo") as stage,
        ):
            clock.now += BRIEF_SECONDS
            stage.advance(7)
            with progress.stage("beside it", "thing", 2):
                pass
        shown = read_all(reader)
    assert "7 narinfos" in shown
    assert "beside it" in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


def test_results_do_not_go_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In `push --dry-run >file` they belong into the file, whatever is shown on the terminal."""
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
            sys.stdout.write("before the bar\n")
            clock.now += BRIEF_SECONDS
            with progress.stage("pushing", "path", 1, MIB):
                sys.stdout.write("beside the bar\n")
        shown = read_all(reader)
    assert capsys.readouterr().out == "before the bar\nbeside the bar\n"
    assert HIDE_CURSOR in shown
    assert "the bar" not in shown


def test_nothing_is_drawn_without_work() -> None:
    """Results on the same terminal would be drawn over, and what is brief does not flicker."""
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
            progress.note("the plan :warning: [red]")
            with progress.stage("reading", "table", 3) as stage:
                stage.advance(3)
            clock.now += BRIEF_SECONDS
            with progress.stage("pushing", "path", 0, 0):
                pass
        assert read_all(reader) == "the plan :warning: [red]\r\n"


def test_log_lines_stay_above_the_bar() -> None:
    """What the registry client logs is written to the same terminal; the handler gets its stream back."""
    clock = Clock()
    with terminal() as (reader, stream):
        handler = logging.StreamHandler(stream)
        logging.getLogger().addHandler(handler)
        try:
            with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
                clock.now += BRIEF_SECONDS
                with progress.stage("pushing", "path", 2, 2 * MIB):
                    progress.note("the bar is drawn below this")
                    logging.getLogger("nixcache_oci").warning("wait for the registry")
            assert handler.stream is stream
        finally:
            logging.getLogger().removeHandler(handler)
        shown = read_all(reader)
    assert f"{CLEAR_LINE}wait for the registry\r\n" in shown


def test_a_bar_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of the usual width, with numbers of the usual length."""
    monkeypatch.setenv("COLUMNS", "80")
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
            clock.now += BRIEF_SECONDS
            with progress.stage("mirroring segment 7 of 12", "blob", 1000, 120 * MIB) as stage:
                clock.now += 1
                for _ in range(412):
                    stage.advance(1, MIB // 12)
                    stage.sent(MIB // 12)
        shown = read_all(reader)
    assert "mirroring segment 7 of 12" in shown
    assert "412 of 1,000 blobs, 34.3 of 120.0 MiB, 34.3 MiB/s" in shown
    assert shown.count(CURSOR_UP) == 1, "once, to take it away"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot move its cursor, as those of some editors."""
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
            work(progress, clock, 2)
        shown = read_all(reader)
    assert "pushing: 2 of 2 paths" in shown
    assert "\x1b" not in shown


def test_a_bar_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is about colours, and not about bars."""
    monkeypatch.setenv("NO_COLOR", "1")
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress:
            work(progress, clock, 4)
        shown = read_all(reader)
    assert "4 of 4 paths" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)


def test_a_workflow_has_no_bar() -> None:
    """Its log is read later, and an annotation must begin its line."""
    clock = Clock()
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=GithubActions(), clock=clock) as progress:
            work(progress, clock, 2)
        shown = read_all(reader)
    assert "pushing: 2 of 2 paths" in shown
    assert "\x1b" not in shown


def test_an_error_gives_the_terminal_back() -> None:
    """Ctrl-C, too: whoever is left without a cursor does not come again."""
    clock = Clock()
    with terminal() as (reader, stream):
        with (
            contextlib.suppress(KeyboardInterrupt),
            show_progress(stream, is_terminal=True, actions=None, clock=clock) as progress,
        ):
            clock.now += BRIEF_SECONDS
            with progress.stage("pushing", "path", 2, 2 * MIB):
                raise KeyboardInterrupt
        stream.flush()
        shown = read_all(reader)
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)

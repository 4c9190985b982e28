"""What a publish shows while it works."""

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress import LINE_SECONDS, QUIET_SECONDS, show_progress
from nixcache_oci.publisher.progress import Progress

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
        "pushing: 2 of 4 paths, 2.0 of 4.0 MiB, 409.6 KiB/s, 512.0 KiB sent",
        "pushing: 4 of 4 paths, 4.0 of 4.0 MiB, 409.6 KiB/s, 1.5 MiB sent",
        "pushing: 4 of 4 paths, 4.0 of 4.0 MiB, 409.6 KiB/s, 2.0 MiB sent",
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


def test_a_later_round_counts_anew() -> None:
    """Its rate is its own, and not that of all that went before."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        progress.begin(1, 100 * MIB)
        clock.now += 1
        progress.staged("a", 100 * MIB)
        progress.begin(1, MIB)
        clock.now += 4
        progress.staged("b", MIB)
    assert stream.getvalue().splitlines() == [
        "pushing: 1 of 1 path, 100.0 of 100.0 MiB, 100.0 MiB/s, 0 B sent",
        "pushing: 1 of 1 path, 1.0 of 1.0 MiB, 256.0 KiB/s, 0 B sent",
    ]


def test_what_is_sent_again_is_counted_once() -> None:
    """A collector may take a blob before its segment names it: there are never more paths done than paths."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        work(progress, clock, 2)
        progress.staged("path-0", MIB)
        progress.sent(MIB)
    assert "3 of 2" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith("pushing: 2 of 2 paths, 2.0 of 2.0 MiB, ")


def test_what_ended_early_says_how_far_it_came() -> None:
    """A log that ends with an error shows what had been done by then."""
    stream, clock = io.StringIO(), Clock()
    with (
        contextlib.suppress(KeyboardInterrupt),
        show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress,
    ):
        progress.begin(2, 2 * MIB)
        clock.now += 1
        progress.staged("a", MIB)
        raise KeyboardInterrupt
    assert stream.getvalue() == "pushing: 1 of 2 paths, 1.0 of 2.0 MiB, 1.0 MiB/s, 0 B sent\n"


def test_a_long_silence_is_broken() -> None:
    """One blob may be on its way for many minutes, and CI ends a job that seems to hang."""
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, is_terminal=False, actions=None, clock=clock) as progress:
        progress.begin(2, 2 * MIB)
        progress.staged("a", MIB)
        clock.now += LINE_SECONDS
        wait_for(stream, "pushing: 1 of 2 paths, ")
        clock.now += QUIET_SECONDS
        wait_for(stream, ", nothing finished for 1 min 5 s\n")
    assert len(stream.getvalue().splitlines()) == 2


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
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None) as progress:
            work(progress, Clock(), 4)
            progress.warn("careful [bold]x")
        stream.flush()
        shown = read_all(reader)
    assert "4 of 4 paths, 4.0 of 4.0 MiB" in shown
    assert "warning: careful [bold]x" in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


def test_results_do_not_go_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In `push --dry-run >file` they belong into the file, whatever is shown on the terminal."""
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None) as progress:
            sys.stdout.write("before the bar\n")
            progress.begin(1, MIB)
            sys.stdout.write("beside the bar\n")
        shown = read_all(reader)
    assert capsys.readouterr().out == "before the bar\nbeside the bar\n"
    assert "the bar" not in shown


def test_nothing_is_drawn_before_there_is_work() -> None:
    """Results that are printed on the same terminal until then would be drawn over."""
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None) as progress:
            progress.note("the plan :warning: [red]")
            progress.begin(0, 0)
        assert read_all(reader) == "the plan :warning: [red]\r\n"


def test_log_lines_stay_above_the_bar() -> None:
    """What the registry client logs is written to the same terminal; the handler gets its stream back."""
    with terminal() as (reader, stream):
        handler = logging.StreamHandler(stream)
        logging.getLogger().addHandler(handler)
        try:
            with show_progress(stream, is_terminal=True, actions=None) as progress:
                progress.begin(2, 2 * MIB)
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
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None) as progress:
            progress.begin(1000, 120 * MIB)
            for number in range(412):
                progress.staged(str(number), MIB // 12)
        shown = read_all(reader)
    assert "412 of 1,000 paths, 34.3 of 120.0 MiB, " in shown
    assert shown.count(CURSOR_UP) == 1, "once, to take it away"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot move its cursor, as those of some editors."""
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=None) as progress:
            work(progress, Clock(), 2)
        shown = read_all(reader)
    assert "pushing: 2 of 2 paths" in shown
    assert "\x1b" not in shown


def test_a_workflow_has_no_bar() -> None:
    """Its log is read later, and an annotation must begin its line."""
    with terminal() as (reader, stream):
        with show_progress(stream, is_terminal=True, actions=GithubActions()) as progress:
            work(progress, Clock(), 2)
        shown = read_all(reader)
    assert "\x1b" not in shown


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

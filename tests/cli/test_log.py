import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cli.log import (
    KIND_SECONDS,
    MOST_LINES_OF_A_KIND,
    MOST_TRACEBACK_CHARACTERS,
    MOST_VALUE_CHARACTERS,
    FloodHandler,
    LogfmtFormatter,
    escape_unprintable,
    set_up_logging,
)

_PAIR = re.compile(r'(?P<key>[A-Za-z0-9_]+)=(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]+)(?: |\Z)')


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def _format(
    message: str, *, name: str = "nixcache_oci.cache.index", level: int = logging.INFO, **extra: object
) -> str:
    record = logging.getLogger(name).makeRecord(
        name, level, "file", 1, message, (), None, extra={"fields": extra}
    )
    return LogfmtFormatter(is_journal=False).format(record)


def _parse(line: str) -> dict[str, str]:
    """Read logfmt back, strictly: what is no pair is an error."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(line):
        pair = _PAIR.match(line, position)
        assert pair, line[position:]
        value = pair["value"]
        fields[pair["key"]] = json.loads(value) if value.startswith('"') else value
        position = pair.end()
    return fields


def test_line_reads_as_event_and_fields() -> None:
    """A line is one event, its fields in the order in which they were given."""
    line = _format("index refreshed", entries=12, seconds=0.25, changed=True, tag=None, path=Path("/a b"))
    assert line.partition(" ")[2] == (
        'level=info event="index refreshed" entries=12 seconds=0.25 changed=true tag=none path="/a b"'
    )


def test_time_is_utc() -> None:
    """Logs of several machines can be put beside each other."""
    assert re.match(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 ", _format("started"))


@pytest.mark.parametrize("name", ["aiohttp.server", "asyncio"])
def test_other_packages_are_named(name: str) -> None:
    """An event of a library tells whose it is."""
    assert _parse(_format("Error handling request", name=name))["logger"] == name


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_value_forges_a_line(message: str, value: str) -> None:
    """Whatever a client or registry sends, it stays one line, and the value of its own field."""
    line = _format(message, url=value)
    assert line.isprintable()
    fields = _parse(line)
    assert list(fields) == ["time", "level", "event", "url"]
    assert fields["url"] == value


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\nlevel=error", "a\\nlevel=error"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a##[add-mask]b", "a#\\x23[add-mask]b"),
        ("\x7f\x85\u2028\u202e", "\\x7f\\x85\\u2028\\u202e"),
        ("\U000e0001", "\\U000e0001"),
        ("Grüße", "Grüße"),
    ],
)
def test_escapes(text: str, escaped: str) -> None:
    """Terminal commands, line ends of every kind and hidden marks are shown as numbers."""
    assert escape_unprintable(text) == escaped


def test_exception_stays_on_its_line(root_logger: logging.Logger) -> None:
    """A traceback is a field, so that a log can be read line by line."""
    stream = io.StringIO()
    set_up_logging(logging.INFO, {}, stream)
    try:
        int("1\n2")
    except ValueError:
        root_logger.getChild("nixcache_oci").exception("it broke", extra={"fields": {"tries": 2}})
    (line,) = stream.getvalue().splitlines()
    fields = _parse(line)
    assert fields["tries"] == "2"
    assert fields["traceback"].endswith(r"ValueError: invalid literal for int() with base 10: '1\n2'")


def test_level_and_access_log(root_logger: logging.Logger) -> None:
    """What is below the level stays silent, and so does a line for each request."""
    stream = io.StringIO()
    set_up_logging(logging.WARNING, {}, stream)
    root_logger.getChild("nixcache_oci").info("too much detail")
    logging.getLogger("aiohttp.access").error("GET /")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("is_journal", [True, False])
def test_journal_gets_priorities_and_no_time(root_logger: logging.Logger, is_journal: bool) -> None:
    """The journal has its own time, and reads the level from a prefix; a terminal that merely inherits
    JOURNAL_STREAM from its desktop session gets neither.
    """
    reader, writer = os.pipe()
    status = os.fstat(writer)
    with os.fdopen(reader) as lines, os.fdopen(writer, "w") as stream:
        journal = f"{status.st_dev}:{status.st_ino}" if is_journal else "8:12345"
        set_up_logging(logging.DEBUG, {"JOURNAL_STREAM": journal}, stream)
        logger = root_logger.getChild("nixcache_oci")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logger.log(level, "event")
        stream.close()
        written = lines.read().splitlines()
    if is_journal:
        assert [line.partition(" ")[0] for line in written] == [
            *("<7>level=debug", "<6>level=info", "<4>level=warning", "<3>level=error", "<2>level=critical"),
        ]
    else:
        assert all(line.startswith("time=") for line in written)


def test_stream_without_descriptor(root_logger: logging.Logger) -> None:
    """A stream that is no file is not the journal."""
    stream = io.StringIO()
    set_up_logging(logging.INFO, {"JOURNAL_STREAM": "8:12345"}, stream)
    root_logger.getChild("nixcache_oci").info("started")
    assert stream.getvalue().startswith("time=")
    assert sys.stderr is not stream


@pytest.mark.parametrize("letter", ["a", "\x01", "\U0001f600", '"', "\\"])
def test_a_line_is_bounded(letter: str) -> None:
    """Whatever a client sends: each field is cut, and says how long it was; escapes do not undo that."""
    line = _format("request refused", path=letter * 8000, host=letter * MOST_VALUE_CHARACTERS)
    assert len(line) < 2 * 12 * MOST_VALUE_CHARACTERS + 200
    fields = _parse(line)
    assert fields["path"].endswith("… (8000 characters)")
    assert fields["host"] == letter * MOST_VALUE_CHARACTERS


def test_the_end_of_a_long_traceback_is_kept() -> None:
    """It names the error."""

    error = RuntimeError("the end")
    error.__cause__ = ValueError("x" * 2 * MOST_TRACEBACK_CHARACTERS)
    record = logging.getLogger("x").makeRecord(
        "x", logging.ERROR, "f", 1, "failed", (), (RuntimeError, error, None)
    )
    fields = _parse(LogfmtFormatter(is_journal=False).format(record))
    assert len(fields["traceback"]) < MOST_TRACEBACK_CHARACTERS + 100
    assert "RuntimeError: the end" in fields["traceback"]


class Flood:
    """A handler, what it wrote, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        self.handler = FloodHandler(self.stream, clock=lambda: self.now)

    def log(
        self, line: int, message: str = "not served", *, kind: str = "", level: int = logging.INFO
    ) -> None:
        record = logging.getLogger("x").makeRecord(
            "x", level, "file", line, message, (), None, extra={"kind": kind}
        )
        self.handler.handle(record)

    def lines(self) -> list[str]:
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text.splitlines()


@pytest.fixture
def flood() -> Iterator[Flood]:
    flood = Flood()
    yield flood
    flood.handler.close()


def test_a_flood_is_a_few_lines_and_a_count(flood: Flood) -> None:
    """Every minute, as long as it goes on."""
    for minute in range(3):
        flood.now = minute * KIND_SECONDS
        for _ in range(2000):
            flood.log(1)
        counted = ["not served: 1,995 more like this"] if minute else []
        assert flood.lines() == counted + ["not served"] * MOST_LINES_OF_A_KIND
    flood.handler.close()
    assert flood.lines() == ["not served: 1,995 more like this"]


def test_a_flood_hides_nothing_else(flood: Flood) -> None:
    """Another place in the code, another kind of error in the same place, another level."""
    for _ in range(2000):
        flood.log(1, kind="FormatError")
    flood.lines()
    flood.log(2, "index not refreshed")
    flood.log(1, "not served, for another reason", kind="RegistryError")
    flood.log(1, "worse", kind="FormatError", level=logging.ERROR)
    assert flood.lines() == ["index not refreshed", "not served, for another reason", "worse"]


def test_who_debugs_sees_all(flood: Flood) -> None:
    """Each request, where that was asked for."""
    for _ in range(100):
        flood.log(1, level=logging.DEBUG)
    assert len(flood.lines()) == 100


def test_the_count_comes_when_the_flood_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else may be logged for hours."""
    monkeypatch.setattr("nixcache_oci.cli.log.KIND_SECONDS", 0.01)
    written = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if "more like this" in text:
                written.set()
            return super().write(text)

    handler = FloodHandler(Stream(), clock=lambda: float(written.is_set() or len(waited)))
    waited: list[None] = []
    for _ in range(MOST_LINES_OF_A_KIND + 1):
        handler.handle(logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, "event", (), None))
    waited.append(None)
    assert written.wait(30)
    handler.close()

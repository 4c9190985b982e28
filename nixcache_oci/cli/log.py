"""Structured logs on standard error, one event a line, as ``key=value`` pairs (logfmt).

Every module logs by the standard library alone; the fields have one name, for ``logging`` reserves many::

    logging.getLogger(__name__).info("index refreshed", extra={"fields": {"entries": 12}})

gives ``level=info event="index refreshed" entries=12``. No value can forge a line or a field: unprintable
characters are escaped, and long values cut.

Where strangers can cause events, each kind of event has a few lines a minute, and one that counts the others:
a flood of one kind hides no other. A kind is a place in the code, or the ``kind`` in ``extra``.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

from nixcache_oci.wording import counted, show_unprintable

MOST_VALUE_CHARACTERS: Final = 400
"""Of one field, before it is escaped; no store path is longer."""

MOST_TRACEBACK_CHARACTERS: Final = 8_000
"""Of a traceback, whose end is kept."""

MOST_LINES_OF_A_KIND: Final = 5
KIND_SECONDS: Final = 60.0
"""In this time, one kind of event has so many lines, and one more that counts the others."""

_BARE_VALUE = re.compile(r"[A-Za-z0-9_./:@+~,-]+")
_ODD_KEY_CHARACTERS = re.compile(r"[^A-Za-z0-9_]")
_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TRACEBACK: Final = "traceback"
_COMMAND: Final = "##["
_PACKAGE: Final = __name__.partition(".")[0]

# sd-daemon(3): the journal reads a line's priority from such a prefix.
_JOURNAL_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)


class LogfmtFormatter(logging.Formatter):
    """Turns a record into one line; the journal adds the time itself, and reads a priority."""

    def __init__(self, *, is_journal: bool) -> None:
        super().__init__()
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        """Write time, level, event and fields."""
        line = " ".join(
            f"{_ODD_KEY_CHARACTERS.sub('_', key)}={_value(value, is_clipped=key != _TRACEBACK)}"
            for key, value in self._fields(record)
        )
        if not self._is_journal:
            return line
        priorities = (priority for lowest, priority in _JOURNAL_PRIORITIES if record.levelno >= lowest)
        return f"<{next(priorities, 7)}>{line}"

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        if not self._is_journal:
            yield "time", datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        yield "level", record.levelname.lower()
        yield "event", record.getMessage()
        if record.name.partition(".")[0] != _PACKAGE:
            yield "logger", record.name
        yield from vars(record).get("fields", {}).items()
        if record.exc_info:
            text = self.formatException(record.exc_info)
            left_out = len(text) - MOST_TRACEBACK_CHARACTERS
            yield (
                _TRACEBACK,
                f"({counted(left_out, 'character')}) … {text[left_out:]}" if left_out > 0 else text,
            )


class FloodHandler(logging.StreamHandler[TextIO]):
    """Writes a few lines of each kind of event a minute, and counts the others; writes all debug events."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        # When the first line of a kind was written, how many events came since, and the newest of them.
        self._kinds: dict[tuple[object, ...], tuple[float, int, logging.LogRecord]] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write an event, or count it."""
        if record.levelno <= logging.DEBUG:
            super().emit(record)
            return
        self.write_counts()
        kind = (record.pathname, record.lineno, record.levelno, vars(record).get("kind"))
        since, count, _ = self._kinds.get(kind, (self._clock(), 0, record))
        self._kinds[kind] = (since, count + 1, record)
        if count < MOST_LINES_OF_A_KIND:
            super().emit(record)
        elif self._timer is None:
            # The flood may be the last thing that is logged for hours.
            self._timer = threading.Timer(KIND_SECONDS, self._write_counts_later)
            self._timer.daemon = True
            self._timer.start()

    def write_counts(self, *, is_end: bool = False) -> None:
        """Write how many events were left out, of kinds whose time is over, or of all at the end."""
        over = self._clock() - KIND_SECONDS
        for kind, (since, count, record) in list(self._kinds.items()):
            if not is_end and since > over:
                continue
            del self._kinds[kind]
            more = count - MOST_LINES_OF_A_KIND
            if more > 0:
                event = f"{record.getMessage()}: {more:,} more like this"
                super().emit(logging.LogRecord(record.name, record.levelno, "", 0, event, (), None))

    def close(self) -> None:
        """Write all counts, and end."""
        if self._timer is not None:
            self._timer.cancel()
        self.acquire()
        try:
            self.write_counts(is_end=True)
        finally:
            self.release()
        super().close()

    def _write_counts_later(self) -> None:
        self.acquire()
        try:
            self._timer = None
            self.write_counts()
        finally:
            self.release()


def set_up_logging(
    level: int, environment: Mapping[str, str], stream: TextIO, *, serves_strangers: bool = False
) -> None:
    """Log from this level on; where strangers can cause events, those of one kind are limited."""
    handler = FloodHandler(stream) if serves_strangers else logging.StreamHandler(stream)
    handler.setFormatter(LogfmtFormatter(is_journal=_is_journal(environment, stream)))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One line a request would cost more than the answer from memory.
    logging.getLogger("aiohttp.access").disabled = True
    # A traceback for each malformed request would let anybody flood the log. The application logs errors of
    # its handlers itself.
    logging.getLogger("aiohttp.server").disabled = True


def escape_unprintable(text: str) -> str:
    r"""Make a text safe inside one line: ``\n`` for a newline, ``\x1b`` for the escape character.

    GitHub takes ``##[name]`` for a command, anywhere in a line: it is broken up as well.
    """
    return show_unprintable(text).replace(_COMMAND, "#\\x23[")


def _escape_for_logfmt(text: str) -> str:
    # In JSON's way, which readers of logfmt know: two surrogates for more than four hex digits.
    def escape(letter: str) -> str:
        digits = letter.encode("utf-16-be", "surrogatepass").hex()
        return _SHORT_ESCAPES.get(letter) or re.sub("....", r"\\u\g<0>", digits)

    shown = "".join(letter if letter.isprintable() else escape(letter) for letter in text)
    return shown.replace(_COMMAND, "#\\u0023[")


def _value(value: object, *, is_clipped: bool) -> str:
    match value:
        case None | bool():
            text = str(value).lower()
        case float():
            text = f"{round(value, 6)}"
        case _:
            text = str(value)
            if is_clipped and len(text) > MOST_VALUE_CHARACTERS:
                text = f"{text[:MOST_VALUE_CHARACTERS]}… ({counted(len(text), 'character')})"
    if _BARE_VALUE.fullmatch(text):
        return text
    quotable = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escape_for_logfmt(quotable)}"'


def _is_journal(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Compare the stream with JOURNAL_STREAM, which terminals of a desktop inherit: systemd.exec(5)."""
    expected = environment.get("JOURNAL_STREAM")
    if not expected:
        return False
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # not a file at all, as in tests: io.UnsupportedOperation is one
        return False
    return expected == f"{status.st_dev}:{status.st_ino}"

"""Structured logs on standard error, one event a line, as ``key=value`` pairs (logfmt).

Every module logs by the standard library alone: a fixed sentence names the event, ``extra`` has its fields,
under one name, because ``logging`` refuses names that it uses itself::

    logging.getLogger(__name__).info("index refreshed", extra={"fields": {"entries": 12}})

gives ``level=info event="index refreshed" entries=12``. No value can forge a line or a field, whatever it
holds: all but printable characters are escaped, and what is too long is cut.

Where strangers can cause events, each kind of event has a few lines a minute, and one that counts the others.
A kind is a place in the code, or what ``extra`` calls ``kind`` there: a flood of one hides no other.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

from nixcache_oci.wording import counted

MOST_VALUE_CHARACTERS: Final = 400
"""Of one field, before it is escaped; Nix names no store path that is longer."""

MOST_TRACEBACK_CHARACTERS: Final = 8_000
"""Of a traceback, the end of which tells most."""

MOST_LINES_OF_A_KIND: Final = 5
KIND_SECONDS: Final = 60.0
"""In so long a time, one kind of event has so many lines, and one more that counts the others."""

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
    (logging.DEBUG, 7),
)


class LogfmtFormatter(logging.Formatter):
    """Turns a record into one line.

    Args:
        is_journal: whether the line goes to the journal, which adds the time itself and reads a priority.
    """

    def __init__(self, *, is_journal: bool) -> None:
        super().__init__()
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        """Write time, level, event and fields, in the order in which they were given."""
        line = " ".join(
            f"{_key(key)}={_value(value, is_clipped=key != _TRACEBACK)}"
            for key, value in self._fields(record)
        )
        return f"<{_journal_priority(record.levelno)}>{line}" if self._is_journal else line

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
    """Writes a few lines of each kind of event in a while, and counts the others.

    Events of level debug are all written: who asks for them wants them.

    Args:
        stream: where to.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        # When the first line of a kind was written, how many events there were since, and the newest of them.
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
        """Say how many events were not written, of kinds whose time is over; of all, if this is the end."""
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
        """Say what was not said, and end."""
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
    """Send what the package logs to a stream; called once, by a verb that logs.

    Args:
        level: the lowest level that is written, as a number of the logging module.
        environment: of the process; JOURNAL_STREAM tells whether the stream is the journal.
        stream: standard error.
        serves_strangers: whether others can cause events; then those of one kind are limited.
    """
    handler = FloodHandler(stream) if serves_strangers else logging.StreamHandler(stream)
    handler.setFormatter(LogfmtFormatter(is_journal=_is_journal(environment, stream)))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One line a request would cost more than the answer from memory.
    logging.getLogger("aiohttp.access").disabled = True
    # What is no HTTP is the sender's matter: a traceback for each would let anybody flood the log. What goes
    # wrong in a handler, the application logs itself.
    logging.getLogger("aiohttp.server").disabled = True


def escape_unprintable(text: str) -> str:
    r"""Make a text safe inside one line: ``\n`` for a newline, ``\x1b`` for the escape character.

    GitHub takes ``##[name]`` for a command, wherever in a line it stands: it is broken up as well.
    """
    shown = "".join(letter if letter.isprintable() else _escape_letter(letter) for letter in text)
    return shown.replace(_COMMAND, "#\\x23[")


def _escape_letter(letter: str) -> str:
    # As Python writes it.
    return ascii(letter)[1:-1]


def _escape_for_logfmt(text: str) -> str:
    # In JSON's way, with two halves for what lies beyond four hex digits: readers of logfmt know it.
    def escape(letter: str) -> str:
        digits = letter.encode("utf-16-be", "surrogatepass").hex()
        return _SHORT_ESCAPES.get(letter) or re.sub("....", r"\\u\g<0>", digits)

    shown = "".join(letter if letter.isprintable() else escape(letter) for letter in text)
    return shown.replace(_COMMAND, "#\\u0023[")


def _key(key: str) -> str:
    return _ODD_KEY_CHARACTERS.sub("_", key)


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


def _journal_priority(level: int) -> int:
    return next((priority for lowest, priority in _JOURNAL_PRIORITIES if level >= lowest), 7)


def _is_journal(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Tell whether the stream is the one that JOURNAL_STREAM names by device and inode: systemd.exec(5).

    A desktop's terminals inherit the variable from the session, so that it alone proves nothing.
    """
    expected = environment.get("JOURNAL_STREAM")
    if not expected:
        return False
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # not a file at all, as in tests: io.UnsupportedOperation is one
        return False
    return expected == f"{status.st_dev}:{status.st_ino}"

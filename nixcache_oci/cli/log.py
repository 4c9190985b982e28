"""Structured logs on standard error, one event a line, as ``key=value`` pairs (logfmt).

Every module logs by the standard library alone: a fixed sentence names the event, ``extra`` has its fields,
under one name, because ``logging`` refuses names that it uses itself::

    logging.getLogger(__name__).info("index refreshed", extra={"fields": {"entries": 12}})

gives ``level=info event="index refreshed" entries=12``. No value can forge a line or a field, whatever it
holds: all but printable characters are escaped.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

_BARE_VALUE = re.compile(r"[A-Za-z0-9_./:@+~,-]+")
_ODD_KEY_CHARACTERS = re.compile(r"[^A-Za-z0-9_]")
_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
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
        line = " ".join(f"{_key(key)}={_value(value)}" for key, value in self._fields(record))
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
            yield "traceback", self.formatException(record.exc_info)


def set_up_logging(level: int, environment: Mapping[str, str], stream: TextIO) -> None:
    """Send what the package logs to a stream; called once, by a verb that logs.

    Args:
        level: the lowest level that is written, as a number of the logging module.
        environment: of the process; JOURNAL_STREAM tells whether the stream is the journal.
        stream: standard error.
    """
    handler = logging.StreamHandler(stream)
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


def _value(value: object) -> str:
    match value:
        case None | bool():
            text = str(value).lower()
        case float():
            text = f"{round(value, 6)}"
        case _:
            text = str(value)
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

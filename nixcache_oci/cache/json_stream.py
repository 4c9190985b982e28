"""Streaming JSON: whatever a document holds takes little memory at a time.

``json`` parses whole documents, in which two bytes can become an object of 64, and blocks all threads. Here
it parses one value at a time, from a window of the text, and skips what is not needed. Only UTF-8 is accepted
(RFC 8259, section 8.1).
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Final

from nixcache_oci.errors import FormatError

MAX_VALUE_LETTERS: Final = 1024 * 1024
"""Per value: a narinfo has at most 1 MiB. As small lists, it takes 20 MiB."""

_WINDOW_BYTES: Final = 256 * 1024
_MAX_MARKS: Final = 1_000_000  # skipped quotes and brackets: a second
_SURELY_BEHIND: Final = 3  # characters
_SPACE = re.compile(r"[ \t\n\r]*")
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_OUTSIDE = re.compile(r'["\[\]{}]')
_SCALAR = re.compile(r"[^ \t\n\r,\]}]*")


class JsonStream:
    """Reads forward; every method raises FormatError if the document is malformed.

    Args:
        content: the document.
        what: names it in errors.
    """

    def __init__(self, content: bytes | bytearray, what: str) -> None:
        self._content = memoryview(content)
        self._what = what
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._parser = json.JSONDecoder()
        self._offset = 0
        self._text = ""
        self._at = 0
        self._marks = 0

    def is_at(self, mark: str) -> bool:
        """Check whether the next value begins with this character."""
        return self._peek() == mark

    def members(self) -> Iterator[str]:
        """Iterate over an object: after each name, its value has to be read or skipped."""
        for _ in self._items("{", "}"):
            name = self.value() if self.is_at('"') else None
            if not isinstance(name, str):
                raise self._error("expected a name")
            self._expect(":")
            yield name

    def elements(self) -> Iterator[str]:
        """Iterate over a list: each time, a value has to be read or skipped."""
        return self._items("[", "]")

    def value(self) -> object:
        """Read a value; one that is too long is skipped, and replaced by a text that says so."""
        self._peek()
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at >= MAX_VALUE_LETTERS:
                    self.skip()
                    return f"over {MAX_VALUE_LETTERS} letters"
                if isinstance(error, RecursionError) or not self._read_on():
                    raise self._error(str(error)) from None
            else:
                # A number may continue beyond the window, which may end after "1", "1." or "1e+".
                if len(self._text) - end >= _SURELY_BEHIND or not self._read_on():
                    self._at = end
                    return value

    def skip(self) -> None:
        """Skip a value without validating it."""
        beginning = self._peek()
        if not beginning or beginning in ",:]}":
            raise self._error(f"expected a value, got {beginning!r}")
        if beginning not in '"[{':
            self._pass_over(_SCALAR)
            return
        depth = 0
        while True:
            mark = self._find(_OUTSIDE)
            if mark == '"':
                self._pass_string()
            else:
                depth += 1 if mark in "[{" else -1
            if depth == 0:
                return

    def end(self) -> None:
        """Check that only white space is left."""
        if self._peek():
            raise self._error("something follows its end")

    def _items(self, opening: str, closing: str) -> Iterator[str]:
        self._expect(opening)
        if self.is_at(closing):
            self._at += 1
            return
        while True:
            yield opening
            if self._peek() == closing:
                self._at += 1
                return
            self._expect(",")

    def _expect(self, mark: str) -> None:
        found = self._peek()
        if found != mark:
            raise self._error(f"expected {mark!r}, got {found!r}")
        self._at += 1

    def _peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        self._pass_over(_SPACE)
        return self._text[self._at : self._at + 1]

    def _pass_over(self, shape: re.Pattern[str]) -> None:
        while True:
            match = shape.match(self._text, self._at)
            self._at = match.end() if match is not None else self._at
            if self._at < len(self._text) or not self._read_on():
                return

    def _pass_string(self) -> None:
        """Skip the rest of a string whose opening quote was read."""
        while True:
            match = _IN_STRING.match(self._text, self._at)
            self._at = match.end() if match is not None else self._at
            if self._text[self._at : self._at + 1] == '"':
                self._at += 1
                return
            # Else the window ends here, or within an escape.
            if not self._read_on():
                raise self._error("it ends too early")

    def _find(self, shape: re.Pattern[str]) -> str:
        """Skip to after the next mark, and return it."""
        while (match := shape.search(self._text, self._at)) is None:
            self._at = len(self._text)
            if not self._read_on():
                raise self._error("it ends too early")
        self._at = match.end()
        self._marks += 1
        if self._marks > _MAX_MARKS:
            raise self._error(f"too much in it is of no use here: over {_MAX_MARKS} values are passed over")
        return match[0]

    def _read_on(self) -> bool:
        """Double the window, and drop what was read; False at the end."""
        if self._offset >= len(self._content):
            return False
        left = self._text[self._at :]
        size = max(_WINDOW_BYTES, min(len(left), MAX_VALUE_LETTERS - len(left)))
        piece = self._content[self._offset : self._offset + size]
        self._offset += len(piece)
        try:
            self._text = left + self._decoder.decode(piece, final=self._offset >= len(self._content))
        except UnicodeDecodeError:
            raise self._error("not UTF-8") from None
        self._at = 0
        return True

    def _error(self, reason: str) -> FormatError:
        return FormatError(f"{self._what}: not JSON: {reason}"[:300])

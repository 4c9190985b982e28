"""Range requests.

Source: RFC 9110, section 14. A single range is served; lists, other units and malformed headers are ignored,
    as
the RFC allows, and the whole is sent.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

_ONE_RANGE: Final = re.compile(
    r"bytes[ \t]*=[ \t]*([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})[ \t]*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes from ``start`` to before ``end``, of ``size`` bytes."""

    start: int
    end: int
    size: int

    @classmethod
    def whole(cls, size: int) -> Self:
        """The whole."""
        return cls(0, size, size)

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole."""
        return self.start == 0 and self.end == self.size

    @property
    def content_range(self) -> str:
        """The header of a 206 response."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


class UnsatisfiableRangeError(Exception):
    """The range starts after the end of ``size`` bytes: 416."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a Range header for content of ``size`` bytes; None to send the whole.

    Raises:
        UnsatisfiableRangeError: there is no such byte.
    """
    match = _ONE_RANGE.fullmatch(header) if header is not None else None
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise UnsatisfiableRangeError(size)
        return ByteRange(size - length, size, size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableRangeError(size)
    end = min(int(last) + 1, size) if last else size
    return ByteRange(start, end, size)

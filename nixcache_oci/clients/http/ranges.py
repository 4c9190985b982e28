"""Byte ranges: rendering the request, and checking which part an answer holds.

Ranges are closed if the size is known, because some servers do not support open-ended ones.

Source: RFC 9110, sections 14.2 to 14.4.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from nixcache_oci.errors import FormatError
from nixcache_oci.wording import counted

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})")
_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Extent:
    """The wanted part of an answer's body, in bytes."""

    size: int  # of the whole blob
    skip: int  # to drop at the start of the body
    start: int  # offset in the blob of what follows
    end: int  # offset in the blob after the wanted part


def render_range(start: int, end: int | None) -> str:
    """Render the Range header for the bytes from ``start`` to before ``end`` (None: all); at least one."""
    return f"bytes={start}-{'' if end is None else end - 1}"


def read_extent(status: int, headers: Mapping[str, str], start: int, end: int | None) -> Extent:
    """Check an answer of status 200 or 206 against the range asked for; FormatError if it is another.

    Some registries ignore Range and answer 200 with the whole blob: the bytes before the part are then
    skipped, however many, for nothing else resumes a download there. ``end`` is None for the whole blob,
    which was then asked for without a range.
    """
    length = read_length(headers)
    if length is None:
        raise FormatError("the answer does not state its length")
    if status == HTTPStatus.PARTIAL_CONTENT:
        first, behind, size = _parse_sized(headers)
        if end is None or (first, behind) != (start, end) or length != end - start:
            raise FormatError(
                f"asked for bytes {start} to {end}, got {first} to {behind} of {size}, "
                f"{counted(length, 'byte')} long"
            )
        return Extent(size, 0, start, end)
    size = length
    if end is None:
        end = size
    if end > size:
        raise FormatError(f"asked for bytes {start} to {end}, but there are {size}")
    return Extent(size, start, start, end)


def read_length(headers: Mapping[str, str]) -> int | None:
    """Read Content-Length, in bytes; None if it is missing or invalid."""
    match = _SIZE.fullmatch(headers.get("Content-Length", ""))
    return int(match[0]) if match else None


def read_size(status: int, headers: Mapping[str, str]) -> int:
    """Read a blob's size from the answer to a request for its first byte; FormatError if it is not stated."""
    if status == HTTPStatus.PARTIAL_CONTENT:
        return _parse_sized(headers)[2]
    if status == HTTPStatus.OK:
        length = read_length(headers)
        if length is not None:
            return length
    elif match := _UNSATISFIED.fullmatch(headers.get("Content-Range", "")):
        return int(match[1])  # an empty blob has no first byte
    raise FormatError("the answer does not state the blob's size")


def parse_content_range(text: str) -> tuple[int, int, int | None]:
    """Read Content-Range: offset of the first byte, offset after the last, and the whole size if stated.

    Raises FormatError if the header is malformed, or contradicts itself.
    """
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise _untold(text)
    first, behind = int(match[1]), int(match[2]) + 1
    size = None if match[3] == "*" else int(match[3])
    if not first < behind <= (behind if size is None else size):
        raise FormatError(f"the answer's Content-Range {text[:80]!r} contradicts itself")
    return first, behind, size


def _parse_sized(headers: Mapping[str, str]) -> tuple[int, int, int]:
    text = headers.get("Content-Range", "")
    first, behind, size = parse_content_range(text)
    if size is None:
        raise _untold(text)
    return first, behind, size


def _untold(text: str) -> FormatError:
    return FormatError(
        f"the answer's Content-Range {text[:80]!r} does not state which bytes of how many were sent"
    )

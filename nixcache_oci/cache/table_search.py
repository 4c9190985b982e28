"""Finding narinfos in the text of a table, in memory or mapped from disk, without parsing it.

A stanza is validated when it is first served. Source: design section 2, "Table".
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NewType, TypeAlias

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import CHARACTER, to_number

# A narinfo has at most some thousand references; a longer stanza is an attack or damage.
MAX_STANZA_BYTES: Final = 1024 * 1024

NARINFO_KEY: Final = "StorePath"
NARINFO_START: Final = f"\n\n{NARINFO_KEY}: ".encode()
"""What every narinfo begins with, behind another stanza."""

_MAX_STORE_DIR_BYTES: Final = 4095  # with its last slash: the longest path on Linux
_HASH_CHARACTERS: Final = 32
_HASH_PART = re.compile(f"{CHARACTER}{{{_HASH_CHARACTERS}}}".encode())
LISTED = re.compile(
    NARINFO_START + rf"/[^\n]{{1,{_MAX_STORE_DIR_BYTES - 2}}}/(".encode() + _HASH_PART.pattern + b")-"
)
"""The beginning of a narinfo that look-ups find."""

_MOST_LISTED_BYTES: Final = len(NARINFO_START) + _MAX_STORE_DIR_BYTES + _HASH_CHARACTERS + 1
# A regular expression blocks all threads; this much takes a few milliseconds.
_SEARCHED_BYTES: Final = 512 * 1024
_FIRST_PIECE_BYTES: Final = 2 * 1024
# Of a narinfo before and behind its hash part; others are found by a longer search.
_NEAR_BYTES: Final = 64
_USUAL_BYTES: Final = 1024
_KEY_CHARACTERS: Final = 12  # that fit into an unsigned 64-bit key
_MAX_NAME_BYTES: Final = 211
# Copying this takes a hundredth of a millisecond.
_MOST_COPIED_BYTES: Final = 256 * 1024
# Searched in one step for what narinfos mention: a tenth of a millisecond.
_STEP_BYTES: Final = 128 * 1024
KEY_BITS: Final = 5 * _KEY_CHARACTERS
"""Bits of a key, as evenly distributed as hash parts."""

Content: TypeAlias = bytes | memoryview
"""The text of a table, in memory or mapped from disk."""

HashPartBytes = NewType("HashPartBytes", bytes)
"""The characters of a ``HashPart``, from a table or a validated request."""

Named: TypeAlias = tuple[bool, bytes, int]
"""A row that a search found: whether its name only contains the first word, the name, and the row."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The positions of a table's narinfos, for look-ups.

    Attributes:
        keys: the first 12 characters of each hash part as a number, ascending.
        positions: byte offset of each hash part in the table; same order.
    """

    keys: "array[int]"
    positions: "array[int]"


def scan(content: Content) -> Scan:
    """Find every narinfo without parsing it: a stanza is validated when it is first served.

    Raises:
        FormatError: the narinfos are not sorted.
    """
    keys, positions = array("Q"), array("I")
    previous = b""
    for match in _find_listed(content):
        hash_part = match[1]
        if hash_part <= previous:
            raise FormatError(f"table: {hash_part.decode()} is not in the order of hash parts")
        previous = hash_part
        keys.append(row_key(hash_part))
        positions.append(match.start(1))
    return Scan(keys, positions)


def _find_listed(content: Content) -> Iterator[re.Match[bytes]]:
    start = 0
    while start < len(content):
        end = start + _SEARCHED_BYTES
        behind = start
        for match in LISTED.finditer(content, start, end):
            yield match
            behind = match.end()
        # A match that crosses the end begins after this.
        start = max(behind, end - _MOST_LISTED_BYTES)


def find_hash_part(
    content: Content,
    keys: Sequence[int],
    positions: Sequence[int],
    hash_part: HashPartBytes,
    key: int,
) -> int | None:
    """Look up a narinfo by bisection.

    Args:
        content: the table.
        keys: from ``scan``.
        positions: from ``scan``.
        hash_part: to look for.
        key: its ``row_key``, computed once for several tables.

    Returns:
        Its row, or None.
    """
    row = bisect_left(keys, key)
    while row < len(keys) and keys[row] == key:
        if hash_part_at(content, positions[row]) == hash_part:
            return row
        row += 1
    return None


def hash_part_at(content: Content, position: int) -> HashPartBytes:
    """Return the hash part at this offset."""
    return HashPartBytes(bytes(content[position : position + _HASH_CHARACTERS]))


def find_named(
    content: Content,
    positions: Sequence[int],
    words: Sequence[bytes],
    rows: range,
    before: Named | None = None,
) -> list[Named]:
    """Find the store objects whose names have all of some words, at least one, among some rows.

    Words are in lower case, and so are the names that are returned. What sorts behind ``before`` is left out
    where that saves time.
    """
    first, *others = words
    # Rows that have none, which are most, then take a fifth of a microsecond each.
    names = b"\n".join(_names(content, [positions[row] + _HASH_CHARACTERS + 1 for row in rows])).lower()
    if first not in names:
        return []
    named = zip(names.split(b"\n"), rows, strict=True)
    if before is None:
        found = [(not name.startswith(first), name, row) for name, row in named if first in name]
    elif before[0]:
        found = [
            (not name.startswith(first), name, row)
            for name, row in named
            if first in name and (name < before[1] or name.startswith(first))
        ]
    else:
        found = [(False, name, row) for name, row in named if name < before[1] and name.startswith(first)]
    return [one for one in found if all(word in one[1] for word in others)] if others else found


def _names(content: Content, starts: Sequence[int]) -> list[bytes]:
    """Read the names that start at some offsets, in ascending order."""
    begin, end = starts[0], starts[-1] + _MAX_NAME_BYTES
    if end - begin <= _MOST_COPIED_BYTES:
        content, starts = bytes(content[begin:end]), [start - begin for start in starts]
    return [bytes(content[start : start + _MAX_NAME_BYTES]).partition(b"\n")[0] for start in starts]


def find_mentioning(content: Content, positions: Sequence[int], wanted: bytes) -> Iterator[int | None]:
    """Find the rows whose narinfos have a text anywhere, some of them twice; None ends a short step."""
    for begin in range(0, len(content), _STEP_BYTES):
        piece = bytes(content[begin : begin + _STEP_BYTES + len(wanted) - 1])
        at = piece.find(wanted)
        while at >= 0:
            row = bisect_right(positions, begin + at) - 1
            if row >= 0:
                yield row
            if row + 1 == len(positions):
                break
            at = piece.find(wanted, max(at + 1, positions[row + 1] - begin))
        yield None


def is_key_at(content: Content, key: int, position: int) -> bool:
    """Check a key and a position that ``scan`` found."""
    match = _HASH_PART.fullmatch(hash_part_at(content, position))
    return match is not None and row_key(match[0]) == key


def stanza_around(content: Content, position: int) -> bytes:
    """Return the narinfo whose hash part is at this offset, as stored; empty if none, or over 1 MiB."""
    near = max(0, position - _NEAR_BYTES)
    piece = bytes(content[near : position + _USUAL_BYTES])
    gap, end = piece.rfind(NARINFO_START, 0, position - near), piece.find(b"\n\n", position - near)
    if gap >= 0 and end >= 0:
        return piece[gap + 2 : end + 1]
    earliest = max(0, position - _MAX_STORE_DIR_BYTES - len(NARINFO_START))
    gap = bytes(content[earliest:position]).rfind(NARINFO_START)
    start = earliest + gap + 2
    end = find_bytes(content, b"\n\n", position, start + MAX_STANZA_BYTES + 1)
    stanza_end = len(content) if end < 0 else end + 1
    if gap < 0 or stanza_end - start > MAX_STANZA_BYTES:
        return b""
    return bytes(content[start:stanza_end])


def row_key(hash_part: bytes) -> int:
    """Compute the value of ``Scan.keys`` for a hash part."""
    return to_number(hash_part[:_KEY_CHARACTERS])


def find_bytes(content: Content, wanted: bytes, start: int, end: int) -> int:
    """Find as ``bytes.find`` does, which views lack: copy a piece at a time, most stanzas in one."""
    end = min(end, len(content))
    size = _FIRST_PIECE_BYTES
    while start < end:
        at = bytes(content[start : min(start + size, end)]).find(wanted)
        if at >= 0:
            return start + at
        start += size - len(wanted) + 1
        size = min(2 * size, _SEARCHED_BYTES)
    return -1

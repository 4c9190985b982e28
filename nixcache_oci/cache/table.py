"""Tables: the text that lists what one segment holds.

Stanzas of ``Key: value`` lines, separated by one empty line: a header, then records, then narinfos sorted by
hash part, each exactly as the proxy serves it. Stanzas are rendered from parsed values, never pasted: an
empty line inside a value would forge a stanza. Source: design section 2, "Table".
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Final, NewType, TypeAlias

from nixcache_oci.cache.record import FIELD_VALUE, Field, Record, parse_record, record_fields
from nixcache_oci.cache.timestamp import format_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import CHARACTER, to_number
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.wording import counted

MAX_TABLE_BYTES: Final = 64 * 1024 * 1024
# A narinfo has at most some thousand references; a longer stanza is an attack or damage.
MAX_STANZA_BYTES: Final = 1024 * 1024
# A hundred public keys. Every reader parses the headers of all tables, of which there may be thousands.
MAX_HEADER_BYTES: Final = 16 * 1024

_VERSION: Final = "2"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")

_NARINFO_KEY: Final = "StorePath"
_NARINFO_START: Final = f"\n\n{_NARINFO_KEY}: ".encode()
_MAX_STORE_DIR_BYTES: Final = 4095  # with its last slash: the longest path on Linux
_HASH_CHARACTERS: Final = 32
_HASH_PART = re.compile(f"{CHARACTER}{{{_HASH_CHARACTERS}}}".encode())
_LISTED = re.compile(
    _NARINFO_START + rf"/[^\n]{{1,{_MAX_STORE_DIR_BYTES - 2}}}/(".encode() + _HASH_PART.pattern + b")-"
)
_MOST_LISTED_BYTES: Final = len(_NARINFO_START) + _MAX_STORE_DIR_BYTES + _HASH_CHARACTERS + 1
# A regular expression blocks all threads; this much takes a few milliseconds.
_SEARCHED_BYTES: Final = 512 * 1024
_FIRST_PIECE_BYTES: Final = 2 * 1024
# Of a narinfo before and behind its hash part; others are found by a longer search.
_NEAR_BYTES: Final = 64
_USUAL_BYTES: Final = 1024
_KEY_CHARACTERS: Final = 12  # that fit into an unsigned 64-bit key
KEY_BITS: Final = 5 * _KEY_CHARACTERS
"""Bits of a key, as evenly distributed as hash parts."""

Content: TypeAlias = bytes | memoryview
"""The text of a table, in memory or mapped from disk."""

HashPartBytes = NewType("HashPartBytes", bytes)
"""The characters of a ``HashPart``, from a table or a validated request."""


@dataclass(frozen=True, slots=True)
class TableHeader:
    """The header of a table.

    Attributes:
        created: when the segment was made.
        source: such as the URL of a commit, or None.
        public_keys: ``name:base64`` of the keys that signed its narinfos.
        extra: unknown fields.
    """

    created: datetime
    source: str | None = None
    public_keys: tuple[str, ...] = ()
    extra: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table, parsed."""

    header: TableHeader
    records: tuple[Record, ...] = ()
    narinfos: tuple[NarInfo, ...] = ()


def render_table(table: Table, *, limit: int = MAX_TABLE_BYTES) -> bytes:
    """Write a table of at most ``limit`` bytes; narinfos are sorted.

    Raises:
        FormatError: a line break in a value, a store path listed twice, or a stanza or the whole over its
            limit.
    """
    narinfos = sorted(table.narinfos, key=lambda narinfo: narinfo.store_path.hash_part)
    for one, other in pairwise(narinfos):
        if one.store_path.hash_part == other.store_path.hash_part:
            raise FormatError(f"table: {other.store_path} is listed twice")
    header = _render_fields(_header_fields(table.header))
    _check_header(header.encode())
    stanzas = [header]
    stanzas += [_render_record(record) for record in table.records]
    stanzas += [narinfo.render() for narinfo in narinfos]
    content = b"\n".join(_encode_stanza(stanza) for stanza in stanzas)
    if len(content) > limit:
        raise FormatError(f"table: {counted(len(content), 'byte')}, over the limit of {limit}")
    return content


def parse_table(content: bytes) -> Table:
    """Parse a whole table strictly, to rewrite or count it; look-ups use ``scan``.

    Raises:
        FormatError: malformed.
    """
    return replace(parse_head(content), narinfos=tuple(parse_narinfos(content)))


def parse_narinfos(content: Content) -> Iterator[NarInfo]:
    """Parse all narinfos strictly, one at a time: exactly the stanzas that ``scan`` finds.

    Raises:
        FormatError: malformed after the head.
    """
    end_of_head = _end_of_head(content)
    if end_of_head == len(content):
        return
    previous = ""
    for stanza in _stanzas(content, end_of_head + 1, len(content)):
        narinfo = _parse_narinfo(stanza)
        if narinfo.store_path.hash_part <= previous:
            raise FormatError("table: its narinfos are not in the order of their hash parts")
        previous = narinfo.store_path.hash_part
        yield narinfo


def parse_head(content: Content) -> Table:
    """Parse header and records strictly, but no narinfos.

    Raises:
        FormatError: not a version 2 table, or a malformed header or record.
    """
    _, *records = (_parse_fields(stanza) for stanza in _stanzas(content, 0, _end_of_head(content)))
    return Table(parse_header(content), tuple(parse_record(record) for record in records))


def parse_header(content: Content) -> TableHeader:
    """Parse only the header: a malformed record must not keep narinfos from being served.

    Raises:
        FormatError: not a version 2 table, or a malformed header.
    """
    header = bytes(content[: MAX_HEADER_BYTES + 1])
    end = header.find(b"\n\n")
    header = header if end < 0 else header[: end + 1]
    _check_header(header)
    return _parse_header(_parse_fields(header))


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
        for match in _LISTED.finditer(content, start, end):
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


def is_key_at(content: Content, key: int, position: int) -> bool:
    """Check a key and a position that ``scan`` found."""
    match = _HASH_PART.fullmatch(hash_part_at(content, position))
    return match is not None and row_key(match[0]) == key


def stanza_around(content: Content, position: int) -> bytes:
    """Return the narinfo whose hash part is at this offset, as stored; empty if none, or over 1 MiB."""
    near = max(0, position - _NEAR_BYTES)
    piece = bytes(content[near : position + _USUAL_BYTES])
    gap, end = piece.rfind(_NARINFO_START, 0, position - near), piece.find(b"\n\n", position - near)
    if gap >= 0 and end >= 0:
        return piece[gap + 2 : end + 1]
    earliest = max(0, position - _MAX_STORE_DIR_BYTES - len(_NARINFO_START))
    gap = bytes(content[earliest:position]).rfind(_NARINFO_START)
    start = earliest + gap + 2
    end = _find(content, b"\n\n", position, start + MAX_STANZA_BYTES + 1)
    stanza_end = len(content) if end < 0 else end + 1
    if gap < 0 or stanza_end - start > MAX_STANZA_BYTES:
        return b""
    return bytes(content[start:stanza_end])


def row_key(hash_part: bytes) -> int:
    """Compute the value of ``Scan.keys`` for a hash part."""
    return to_number(hash_part[:_KEY_CHARACTERS])


def _parse_narinfo(stanza: bytes) -> NarInfo:
    if _LISTED.match(b"\n\n" + stanza) is None:
        # ``scan`` finds narinfos by their first line: nothing may count as listed that is never served.
        raise FormatError(f"table: a narinfo that does not begin with its {_NARINFO_KEY}: {stanza[:80]!r}")
    return NarInfo.parse(stanza)


def _end_of_head(content: Content) -> int:
    at = _find(content, _NARINFO_START, 0, len(content))
    return len(content) if at < 0 else at + 1


def _find(content: Content, wanted: bytes, start: int, end: int) -> int:
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


def _stanzas(content: Content, start: int, end: int) -> Iterator[bytes]:
    """Yield each stanza with its last line break, but without the empty line after it."""
    gap = 0
    while gap >= 0:
        if start >= end:
            raise FormatError("table: it is empty, or there is nothing behind an empty line")
        gap = _find(content, b"\n\n", start, end)
        stanza_end = end if gap < 0 else gap + 1
        if stanza_end - start > MAX_STANZA_BYTES:
            raise FormatError(f"table: a stanza of over {MAX_STANZA_BYTES} bytes")
        yield bytes(content[start:stanza_end])
        start = gap + 2


def _check_header(header: bytes) -> None:
    if not header:
        raise FormatError("table: it is empty")
    if len(header) > MAX_HEADER_BYTES:
        raise FormatError(f"table: its header is over the limit of {MAX_HEADER_BYTES} bytes")


def _header_fields(header: TableHeader) -> tuple[Field, ...]:
    return (
        ("Nixcache-Table", _VERSION),
        ("Created", format_time(header.created)),
        *((("Source", header.source),) if header.source is not None else ()),
        *(("Public-Key", key) for key in header.public_keys),
        *header.extra,
    )


def _parse_header(fields: tuple[Field, ...]) -> TableHeader:
    if fields[0] != ("Nixcache-Table", _VERSION):
        raise FormatError(
            f"table: expected 'Nixcache-Table: {_VERSION}' first, got {': '.join(fields[0])[:80]!r}"
        )
    created: datetime | None = None
    source: str | None = None
    public_keys: list[str] = []
    extra: list[Field] = []
    for key, value in fields[1:]:
        match key:
            case "Created":
                created = parse_time(value)
            case "Source":
                source = value
            case "Public-Key":
                public_keys.append(value)
            case _:
                extra.append((key, value))
    if created is None:
        raise FormatError("table: its header has no Created")
    return TableHeader(created, source, tuple(public_keys), tuple(extra))


def _render_record(record: Record) -> str:
    fields = record_fields(record)
    if fields[0][0] == _NARINFO_KEY:
        raise FormatError(f"table: no record can start with {_NARINFO_KEY}: readers take it for a narinfo")
    return _render_fields(fields)


def _render_fields(fields: Sequence[Field]) -> str:
    lines = []
    for key, value in fields:
        if not _KEY.fullmatch(key) or not FIELD_VALUE.fullmatch(value):
            raise FormatError(f"table: no such field can be written: {key!r}: {value!r}")
        lines.append(f"{key}: {value}\n")
    return "".join(lines)


def _encode_stanza(stanza: str) -> bytes:
    try:
        content = stanza.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"table: it cannot be written as UTF-8: {error}") from None
    if len(content) > MAX_STANZA_BYTES:
        raise FormatError(
            f"table: a stanza of {counted(len(content), 'byte')}, over the limit of {MAX_STANZA_BYTES}: "
            f"{stanza[:120]!r}"
        )
    return content


def _parse_fields(stanza: bytes) -> tuple[Field, ...]:
    """Parse exactly what ``_render_fields`` can write: everything read can be carried over."""
    try:
        lines = stanza.decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"table: not UTF-8: {error}") from None
    if lines.pop() != "":
        raise FormatError("table: it does not end with a line break")
    fields = []
    for line in lines:
        key, colon, value = line.partition(": ")
        if not colon or not _KEY.fullmatch(key) or not FIELD_VALUE.fullmatch(value):
            raise FormatError(f"table: not a 'Key: value' line: {line[:120]!r}")
        fields.append((key, value))
    return tuple(fields)

"""Tables: the text that lists what one segment holds.

Stanzas of ``Key: value`` lines, parted by one empty line: a header, then records, then narinfos sorted by
hash part, each exactly what the proxy serves. Stanzas are rendered from parsed values, never pasted: an
empty line inside a value would forge a stanza. Source: design section 2, "Table".
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from mmap import mmap
from typing import Final, NewType, TypeAlias

from nixcache_oci.cache.record import FIELD_VALUE, Field, Record, parse_record, record_fields
from nixcache_oci.cache.timestamp import format_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import LETTER, to_number
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.wording import counted

MAX_TABLE_BYTES: Final = 64 * 1024 * 1024
# A narinfo names at most some thousands of references; a longer stanza is an attack or damage.
MAX_STANZA_BYTES: Final = 1024 * 1024
# Room for a hundred public keys. Every reader parses the header of every table, and there may be thousands.
MAX_HEADER_BYTES: Final = 16 * 1024

_VERSION: Final = "2"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")

_NARINFO_KEY: Final = "StorePath"
_NARINFO_START: Final = f"\n\n{_NARINFO_KEY}: ".encode()
_MAX_STORE_DIR_BYTES: Final = 4095  # with its last slash: the longest path that Linux takes
_HASH_LETTERS: Final = 32
_HASH_PART = re.compile(f"{LETTER}{{{_HASH_LETTERS}}}".encode())
_LISTED = re.compile(
    _NARINFO_START + rf"/[^\n]{{1,{_MAX_STORE_DIR_BYTES - 2}}}/(".encode() + _HASH_PART.pattern + b")-"
)
_MOST_LISTED_BYTES: Final = len(_NARINFO_START) + _MAX_STORE_DIR_BYTES + _HASH_LETTERS + 1
# No other thread runs while a regular expression searches; this much takes a few milliseconds.
_SEARCHED_BYTES: Final = 512 * 1024
_KEY_LETTERS: Final = 12  # as many letters as fit into an unsigned 64-bit key
KEY_BITS: Final = 5 * _KEY_LETTERS
"""Of a key: its bits are as even as those of the hash parts."""

Content: TypeAlias = bytes | mmap
"""The text of a table, in memory or on disk."""

HashPartBytes = NewType("HashPartBytes", bytes)
"""The letters of a ``HashPart``, as they stand in a table, or in a request that was checked."""


@dataclass(frozen=True, slots=True)
class TableHeader:
    """What a table says of itself.

    Attributes:
        created: when the segment was made.
        source: where from, such as the address of a commit; None where unknown.
        public_keys: ``name:base64`` of the keys that its narinfos were signed with.
        extra: fields that this version does not know.
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
    """Write a table; narinfos are put in order.

    Args:
        table: what to write.
        limit: bytes that it may have at most.

    Raises:
        FormatError: a value that holds a line break, a store path listed twice, a stanza over 1 MiB, or over
            the limit in all.
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
    """Read a whole table strictly, for those who rewrite or count; a reader of narinfos uses ``scan``.

    Raises:
        FormatError: anything that breaks the format.
    """
    return replace(parse_head(content), narinfos=tuple(parse_narinfos(content)))


def parse_narinfos(content: Content) -> Iterator[NarInfo]:
    """Read all narinfos strictly, one at a time: the stanzas that ``scan`` finds, and no others.

    Raises:
        FormatError: anything that breaks the format behind the head.
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
    """Read header and records strictly, and leave the narinfos alone.

    Raises:
        FormatError: not a version 2 table, or a malformed header or record.
    """
    _, *records = (_parse_fields(stanza) for stanza in _stanzas(content, 0, _end_of_head(content)))
    return Table(parse_header(content), tuple(parse_record(record) for record in records))


def parse_header(content: Content) -> TableHeader:
    """Read the header alone: a malformed record is gc's trouble, and no reason not to serve the narinfos.

    Raises:
        FormatError: not a version 2 table, or a malformed header.
    """
    end = content.find(b"\n\n", 0, MAX_HEADER_BYTES + 1)
    header = content[: MAX_HEADER_BYTES + 1 if end < 0 else end + 1]
    _check_header(header)
    return _parse_header(_parse_fields(header))


@dataclass(frozen=True, slots=True)
class Scan:
    """Where the narinfos of a table lie, for look-ups.

    Attributes:
        keys: the first 12 letters of each hash part as a number, ascending.
        positions: offset of each hash part in the table, in bytes; same order.
    """

    keys: "array[int]"
    positions: "array[int]"


def scan(content: Content) -> Scan:
    """Find every narinfo without parsing any: a stanza is validated when it is first served.

    Raises:
        FormatError: the narinfos are not in order.
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
        # What begins before the end, and goes on behind it, begins after this.
        start = max(behind, end - _MOST_LISTED_BYTES)


def find_hash_part(
    content: Content,
    keys: Sequence[int],
    positions: Sequence[int],
    hash_part: HashPartBytes,
    key: int,
    start: int = 0,
    end: int | None = None,
) -> int | None:
    """Look one narinfo up by bisection; ``keys`` and ``positions`` come from ``scan``.

    Args:
        content: the table.
        keys: of its rows.
        positions: of its rows.
        hash_part: to look for.
        key: from ``row_key``, for those who ask several tables.
        start: the first row that may have this key.
        end: the row behind the last one that may; None for the number of all.

    Returns:
        Its place in ``positions``, or None where the table does not list it.
    """
    row = bisect_left(keys, key, start, end)
    while row < len(keys) and keys[row] == key:
        if hash_part_at(content, positions[row]) == hash_part:
            return row
        row += 1
    return None


def hash_part_at(content: Content, position: int) -> HashPartBytes:
    """Give the letters of the hash part that lies at this offset."""
    return HashPartBytes(content[position : position + _HASH_LETTERS])


def is_key_at(content: Content, key: int, position: int) -> bool:
    """Tell whether a key and a position are what ``scan`` would give for this table."""
    match = _HASH_PART.fullmatch(hash_part_at(content, position))
    return match is not None and row_key(match[0]) == key


def stanza_around(content: Content, position: int) -> bytes:
    """Cut out the narinfo whose hash part lies at this offset, exactly as it is served.

    Gives nothing where none starts before that offset, or where it is over 1 MiB.
    """
    earliest = max(0, position - _MAX_STORE_DIR_BYTES - len(_NARINFO_START))
    gap = content.rfind(_NARINFO_START, earliest, position)
    start = gap + 2
    end = content.find(b"\n\n", position, start + MAX_STANZA_BYTES + 1)
    stanza_end = len(content) if end < 0 else end + 1
    if gap < 0 or stanza_end - start > MAX_STANZA_BYTES:
        return b""
    return content[start:stanza_end]


def row_key(hash_part: bytes) -> int:
    """Tell what ``Scan.keys`` holds for a hash part."""
    return to_number(hash_part[:_KEY_LETTERS])


def _parse_narinfo(stanza: bytes) -> NarInfo:
    if _LISTED.match(b"\n\n" + stanza) is None:
        # ``scan`` finds a narinfo by its first line: nobody may take for listed what is never served.
        raise FormatError(f"table: a narinfo that does not begin with its {_NARINFO_KEY}: {stanza[:80]!r}")
    return NarInfo.parse(stanza)


def _end_of_head(content: Content) -> int:
    at = content.find(_NARINFO_START)
    return len(content) if at < 0 else at + 1


def _stanzas(content: Content, start: int, end: int) -> Iterator[bytes]:
    """Yield each stanza, its last line break included, the empty line behind it excluded."""
    gap = 0
    while gap >= 0:
        if start >= end:
            raise FormatError("table: it is empty, or there is nothing behind an empty line")
        gap = content.find(b"\n\n", start, end)
        stanza_end = end if gap < 0 else gap + 1
        if stanza_end - start > MAX_STANZA_BYTES:
            raise FormatError(f"table: a stanza of over {MAX_STANZA_BYTES} bytes")
        yield content[start:stanza_end]
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
    """Read what ``_render_fields`` can write, and nothing else: whatever is read can be carried over."""
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

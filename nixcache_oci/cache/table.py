"""Tables: the text that lists what one segment holds.

Stanzas of ``Key: value`` lines, separated by one empty line: a header, then records, then narinfos sorted by
hash part, each exactly as the proxy serves it. Stanzas are rendered from parsed values, never pasted: an
empty line inside a value would forge a stanza. Source: design section 2, "Table".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Final

from nixcache_oci.cache.record import FIELD_VALUE, Field, Record, parse_record, record_fields
from nixcache_oci.cache.table_search import (
    LISTED,
    MAX_STANZA_BYTES,
    NARINFO_KEY,
    NARINFO_START,
    Content,
    find_bytes,
)
from nixcache_oci.cache.timestamp import format_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.wording import counted

MAX_TABLE_BYTES: Final = 64 * 1024 * 1024
# A hundred public keys. Every reader parses the headers of all tables, of which there may be thousands.
MAX_HEADER_BYTES: Final = 16 * 1024

_VERSION: Final = "2"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


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
    return Table(parse_header(content), tuple(parse_records(content)))


def parse_records(content: Content) -> Iterator[Record]:
    """Parse all records strictly, one at a time.

    Raises:
        FormatError: one is malformed.
    """
    stanzas = _stanzas(content, 0, _end_of_head(content))
    next(stanzas)  # the header
    return (parse_record(_parse_fields(stanza)) for stanza in stanzas)


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


def _parse_narinfo(stanza: bytes) -> NarInfo:
    if LISTED.match(b"\n\n" + stanza) is None:
        # ``scan`` finds narinfos by their first line: nothing may count as listed that is never served.
        raise FormatError(f"table: a narinfo that does not begin with its {NARINFO_KEY}: {stanza[:80]!r}")
    return NarInfo.parse(stanza)


def _end_of_head(content: Content) -> int:
    at = find_bytes(content, NARINFO_START, 0, len(content))
    return len(content) if at < 0 else at + 1


def _stanzas(content: Content, start: int, end: int) -> Iterator[bytes]:
    """Yield each stanza with its last line break, but without the empty line after it."""
    gap = 0
    while gap >= 0:
        if start >= end:
            raise FormatError("table: it is empty, or there is nothing behind an empty line")
        gap = find_bytes(content, b"\n\n", start, end)
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
    if fields[0][0] == NARINFO_KEY:
        raise FormatError(f"table: no record can start with {NARINFO_KEY}: readers take it for a narinfo")
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

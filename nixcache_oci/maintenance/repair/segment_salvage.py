"""Reads as much of each segment as possible, for a repair.

The stanzas of a malformed table are read one by one: a bad line costs one stanza, not the segment.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.inventory import Entry, Inventory
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import MAX_TABLE_BYTES, TableHeader, parse_head, parse_header
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_inflation import inflate_table
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.clients.resume import TABLE_HEAD_SECONDS, read_blob
from nixcache_oci.errors import DigestError, FormatError, LimitError, RegistryError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart

_NARINFO = b"StorePath: "


@dataclass(frozen=True, slots=True, eq=False)
class ReadSegment:
    """One segment, as far as it can be read."""

    segment: Segment
    header: TableHeader | None = None  # of its table; None if nothing of that can be read
    narinfos: Mapping[HashPart, NarInfo] = field(default_factory=dict)  # that it lists
    records: tuple[Record, ...] = ()  # of publishes and pins
    left_out: tuple[str, ...] = ()  # one line for each stanza that cannot be read

    @property
    def tag(self) -> str:
        """Its name in problems."""
        return str(self.segment.tag)


async def read_segments(
    repository: Repository, inventory: Inventory, entries: Iterable[Entry]
) -> list[ReadSegment]:
    """Collect what can be read of every segment; ``entries`` are all narinfos that can be read.

    Raises:
        RegistryError: the repository could not answer.
        LimitError: the tables to read again exceed a limit.
    """
    narinfos: dict[str, dict[HashPart, NarInfo]] = {}
    for entry in entries:
        narinfos.setdefault(entry.listed_by, {})[entry.narinfo.store_path.hash_part] = entry.narinfo
    read: list[ReadSegment] = []
    budget = TableBudget()
    tables = inventory.tables
    for segment in tables.listing.segments:
        file = tables.tables[segment.table]
        try:
            records = await asyncio.to_thread(_check_whole, file)
        except FormatError:
            read.append(await _salvage(repository, segment, budget))
        else:
            known = narinfos.get(str(segment.tag), {})
            read.append(ReadSegment(segment, file.header, known, records))
    there = {one.tag for one in read}
    for segment in (await read_listing(repository, tables.listing.segments)).segments:
        tag = str(segment.tag)
        if tag in tables.damaged:
            read.append(await _salvage(repository, segment, budget))
        elif tag not in there and not await has_manifest(repository, segment.manifest):
            read.append(ReadSegment(segment))
    return read


def _check_whole(file: TableFile) -> tuple[Record, ...]:
    """Return the records of a table that gc can read; FormatError for any other."""
    for _ in file.narinfos():
        pass
    return file.records()


async def _salvage(repository: Repository, segment: Segment, budget: TableBudget) -> ReadSegment:
    try:
        compressed = await read_blob(
            repository, segment.table, MAX_TABLE_BYTES, head_seconds=TABLE_HEAD_SECONDS
        )
        return await asyncio.to_thread(_salvage_table, segment, inflate_table(compressed, budget))
    except LimitError:
        raise  # the table may be intact
    except (DigestError, FormatError, RegistryError) as error:
        await raise_unless_damage(repository, error)
        return ReadSegment(segment)


def _salvage_table(segment: Segment, text: bytes) -> ReadSegment:
    """Read a table stanza by stanza; FormatError if its header cannot be read."""
    head, *stanzas = (stanza.strip(b"\n") + b"\n" for stanza in text.split(b"\n\n"))
    header = parse_header(head)
    narinfos: dict[HashPart, NarInfo] = {}
    records: list[Record] = []
    left_out: list[str] = []
    for stanza in stanzas:
        try:
            if stanza.startswith(_NARINFO):
                narinfo = NarInfo.parse(stanza)
                NarUrl.parse(narinfo.url)
                narinfos.setdefault(narinfo.store_path.hash_part, narinfo)
            else:
                records += parse_head(head + b"\n" + stanza).records
        except FormatError as error:
            first = stanza.partition(b"\n")[0].decode(errors="replace")
            left_out.append(f"{first[:200]}: {error}")
    return ReadSegment(segment, header, narinfos, tuple(records), tuple(left_out))

"""What the segments of a cache say, read back strictly."""

import zstandard

from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, parse_table
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.oci.digest import Digest


async def read_table(repository: Repository, table: Digest) -> Table:
    """Fetch and parse a table."""
    content = await read_blob(repository, table, MAX_TABLE_BYTES)
    return parse_table(zstandard.ZstdDecompressor().decompress(bytes(content)))


async def read_tables(repository: Repository, listing: Listing) -> list[Table]:
    """Fetch and parse all of them, the oldest first."""
    segments = sorted(listing.segments, key=lambda one: one.created)
    return [await read_table(repository, segment.table) for segment in segments]


async def read_records(repository: Repository, listing: Listing) -> list[PublishRecord]:
    """Read what publishes left, the oldest first."""
    tables = await read_tables(repository, listing)
    return [record for table in tables for record in table.records if isinstance(record, PublishRecord)]

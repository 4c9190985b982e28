"""Segments as gc reads them, made without a repository."""

from collections.abc import Sequence
from datetime import timedelta

from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.record import PublishRecord, Record
from nixcache_oci.cache.segment import Segment, build_manifest
from nixcache_oci.cache.table import Table, TableHeader, parse_table, render_table
from nixcache_oci.maintenance.gc.index_change import mark
from nixcache_oci.maintenance.gc.state import Place, StoredSegment
from nixcache_oci.maintenance.gc.table_rows import GcTable, PathNumbers, TableRows
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import Thing
from tests.support.publish import CREATED

DAY = timedelta(days=1)
NUMBERS = PathNumbers()


def stored(
    day: float,
    *things: Thing,
    records: Sequence[Record] = (),
    condemned: float | None = None,
    place: Place = Place.INDEX,
) -> StoredSegment:
    """Make a segment of a day, each thing in a blob of its own."""
    created = CREATED + day * DAY
    narinfos = tuple(thing.narinfo() for thing in things)
    table = Table(TableHeader(created), tuple(records), narinfos)
    text = render_table(table)
    layers = (
        Descriptor(media_type.TABLE, Digest.of(text), len(text)),
        *(describe_nar(NarUrl.parse(one.url).blob, "none", one.file_size or 0) for one in narinfos),
    )
    content = build_manifest(layers[0], layers[1:], created=created, paths=len(things), source=None)
    segment = Segment.from_manifest(content)
    if condemned is not None:
        segment = mark(segment, CREATED + condemned * DAY)
    blobs = {layer.digest: layer.size for layer in layers}
    ordered = parse_table(text).narinfos
    rows = TableRows.of(ordered, blobs, NUMBERS)
    kept = GcTable(table.header, table.records, len(text), rows, lambda: iter(ordered))
    return StoredSegment(segment, place, layers, kept)


def published(day: float, *roots: Thing, scope: str = "main") -> PublishRecord:
    named = tuple((root.path.name, root.path) for root in roots)
    return PublishRecord(scope, f"run-{day}", CREATED + day * DAY, named)

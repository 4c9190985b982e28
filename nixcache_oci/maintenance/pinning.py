"""Pinning and unpinning: each is a record in a segment of its own, so it needs no lock and loses no race."""

from nixcache_oci.cache.commit import list_segments, push_segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.clients.repository import Repository
from nixcache_oci.maintenance.pins import PinningRecord


async def write_pinning(repository: Repository, record: PinningRecord, source: str | None) -> None:
    """Leave a record for gc.

    Args:
        repository: where the cache lies, with leave to push.
        record: of the pin, or of its end.
        source: address of the GitHub repository: GHCR links the package to it.

    Raises:
        FormatError: a version 1 cache, which a publish has to convert first.
        RegistryError: the repository refused; nothing is pinned.
    """
    table = Table(TableHeader(record.time, source=None), (record,))
    segment = await push_segment(repository, table, [], source=source)
    await list_segments(repository, [segment], source=source)

"""What the older tool published is taken over by the first publish that meets it."""

from dataclasses import replace
from typing import Final

from nixcache_oci.cache.conversion import Conversion, convert_version1
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.repository import Repository
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.progress import Progress
from nixcache_oci.wording import counted

_MOST_SHOWN: Final = 10


async def take_over(
    repository: Repository, folder: IndexFolder, options: PublishOptions, progress: Progress
) -> Conversion | None:
    """Push the entries of a version 1 index as segments; None where there is no such index.

    Args:
        repository: with leave to push.
        folder: where tables are kept.
        options: how.
        progress: is told of entries that cannot be taken over.

    Raises:
        FormatError: the index cannot be read.
        RegistryError: the repository could not answer, or refused.
    """
    listing = await read_listing(repository)
    document = listing.version1
    if document is None:
        return None
    tables = await read_tables(repository, folder, replace(listing, version1=None))
    catalog = tables.catalog((), with_condemned=False)
    conversion = await convert_version1(
        repository,
        document,
        listed=lambda hash_part: catalog.find(hash_part) is not None,
        now=now(),
        source=options.repository_source,
        max_layers=options.max_layers,
        max_blob_bytes=options.packing.max_blob_bytes,
    )
    for what, entries, count in (
        ("left out", conversion.missing, len(conversion.missing)),
        ("unreadable", conversion.skipped, conversion.skipped_count),
    ):
        for name, reason in entries[:_MOST_SHOWN]:
            progress.warn(f"version 1 entry {name}: {what}: {reason}")
        if count > _MOST_SHOWN:
            progress.warn(
                f"{what}: {counted(count - _MOST_SHOWN, 'more version 1 entry', 'more version 1 entries')}"
            )
    return conversion

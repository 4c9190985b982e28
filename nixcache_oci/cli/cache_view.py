"""What the verbs that look into a cache share: settings, and reading all of it."""

import argparse
import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.keepers import Keepers
from nixcache_oci.cache.listing import read_listing, require_cache
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import opened
from nixcache_oci.cli.console import complain
from nixcache_oci.cli.progress import showing
from nixcache_oci.clients.repository import Repository
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import index_dir, repository_config
from nixcache_oci.settings.values import Values, add_flags

VARIABLES: Final = (
    *variables.REPOSITORY_VARIABLES,
    variables.INDEX_DIR,
    variables.PUBLIC_KEYS,
    variables.LOG_LEVEL,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheView:
    """A cache that was read, and the name of its repository."""

    name: str
    inventory: Inventory

    @property
    def is_whole(self) -> bool:
        """Whether every table was read."""
        return not self.inventory.tables.damaged and self.inventory.tables.left_out is None


def add_view_flags(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of everything that looks into a cache."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, VARIABLES)


async def read_cache(values: Values) -> CacheView:
    """Read the cache that the settings name; what is damaged is named on standard error.

    Raises:
        Error: a setting cannot be used, or the repository could not answer.
    """
    async with opened(repository_config(values), values) as repository:
        with showing(None, is_quiet=values.flags.quiet) as progress:
            return await read_cache_from(repository, values, progress)


async def read_cache_from(
    repository: Repository, values: Values, progress: Progress, *, with_taken_in: bool = False
) -> CacheView:
    """Read a cache whose repository is open; likewise.

    Args:
        repository: of the cache.
        values: of the settings.
        progress: gets progress.
        with_taken_in: also the tables of segments that a merged one took in.
    """
    folder = await asyncio.to_thread(IndexFolder, index_dir(values), repository.name)
    listing = await read_listing(repository)
    require_cache(repository, listing)
    tables = await read_tables(repository, folder, listing, progress=progress, with_taken_in=with_taken_in)
    fields = {"repository": repository.name, "segments": len(tables.listing.segments)}
    _log.info("cache read", extra={"fields": fields})
    for tag, reason in tables.damaged.items():
        warn(f"{tag} cannot be read: {reason}")
    if tables.left_out is not None:
        warn(tables.left_out)
    if not listing.tables:
        warn(f"{repository.name} is empty: its index lists nothing")
    return CacheView(repository.name, Inventory(tables))


def read_keepers(view: CacheView) -> Keepers:
    """Read what publishes and pins recorded; records that cannot be read are named on standard error."""
    records, malformed = view.inventory.readable_records()
    for tag, reason in malformed.items():
        warn(f"the records of {tag} cannot be read: {reason}")
    return Keepers.of(records, Moment(now()), is_whole=not malformed)


def warn(line: str) -> None:
    """Say something beside the result, in one line."""
    complain(f"nixcache-oci: {line}")

"""The record of a batch: which of its paths become roots, and under which names. Pure."""

from collections.abc import Sequence
from datetime import datetime

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.nix.closure import find_tops
from nixcache_oci.nix.package_name import package_name


def make_batch_record(
    listed: Sequence[PathInfo], scope: str, run: str, time: datetime
) -> PublishRecord | None:
    """Make the record of what the cache lists of a batch's closure; None for nothing.

    The roots are what nothing else of it refers to. Their names have no version, so that the next version
    supersedes the last; the record is partial, so that it supersedes nothing else. FormatError for a scope or
    run that no record can hold.
    """
    tops = [info.store_path for info in find_tops(listed)]
    if not tops:
        return None
    roots = tuple((package_name(path.name), path) for path in tops)
    return PublishRecord(scope, run, time, roots, is_partial=True)

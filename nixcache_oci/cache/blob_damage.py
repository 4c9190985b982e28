"""Whether an error is about one damaged blob, or about the whole repository.

A registry whose storage lost a blob answers 404, 500, or a good head and no body. If the repository still
answers, one blob is damaged, and the rest of the cache remains usable.
"""

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.errors import DigestError, Error, FormatError, NotFoundError, RegistryError


async def raise_unless_damage(repository: Repository, error: Error) -> None:
    """Re-raise the error of reading a blob, unless only that blob is damaged: the repository is probed.

    Raises:
        Error: as given.
    """
    if isinstance(error, NotFoundError | DigestError | FormatError):
        return
    if not isinstance(error, RegistryError):
        raise error
    try:
        await has_manifest(repository, INDEX_TAG)
    except RegistryError:
        raise error from None

"""Whether trouble with one blob is the blob's own, or all of the repository's.

A registry whose storage lost a blob answers in many ways: 404, 500, or a good head and no bytes. Where the
repository answers otherwise, that is one damaged blob, and nothing to give up a whole cache for.
"""

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.errors import DigestError, Error, FormatError, NotFoundError, RegistryError


async def raise_unless_damage(repository: Repository, error: Error) -> None:
    """Raise what reading a blob raised, unless it is about that blob alone.

    Args:
        repository: where the blob lies; is asked for something else.
        error: of the last try.

    Raises:
        Error: this one.
    """
    if isinstance(error, NotFoundError | DigestError | FormatError):
        return
    if not isinstance(error, RegistryError):
        raise error
    try:
        await has_manifest(repository, INDEX_TAG)
    except RegistryError:
        raise error from None

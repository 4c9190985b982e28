"""Implements ``Remover`` by OCI DELETE."""

from contextlib import suppress

from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.removal import UntaggedVersion
from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci.digest import Digest


class RegistryRemover:
    """Deletes manifests at any registry but GitHub's.

    Args:
        registry: a client of its own, which asks for the right to delete: a token service may refuse that one
            as a whole, and what only pushes must not suffer from it. Closed with this.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def remove(self, manifest: Digest) -> None:
        """Delete a manifest, and the tags that point at it."""
        with suppress(NotFoundError):
            await self._registry.delete_manifest(manifest)

    async def untagged(self) -> list[UntaggedVersion]:
        """Tell of none: the specification has no way to ask."""
        return []

    async def close(self) -> None:
        """Give connections back."""
        await self._registry.close()

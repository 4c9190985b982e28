"""Removing manifests from a repository, which each kind of repository does in a way of its own.

Implemented by ``registry.client`` (OCI DELETE), ``github.packages`` (GitHub's REST API, for GHCR refuses the
former) and ``layout_removal`` (files). What may be removed is the caller's to decide: nothing here looks into
a manifest before it goes, and all tags that point at it go with it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from nixcache_oci.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class UntaggedVersion:
    """A manifest that no tag points at.

    Attributes:
        digest: of the manifest.
        created: when the repository took it, with a time zone.
    """

    digest: Digest
    created: datetime


class Remover(Protocol):
    """Removes manifests for good."""

    async def remove(self, manifest: Digest) -> None:
        """Remove a manifest and its tags; one that is not there is no error.

        Raises:
            RegistryError: it was refused, and the manifest is kept; others may still be removable.
        """

    async def untagged(self) -> list[UntaggedVersion]:
        """List the manifests without a tag; empty where the repository cannot tell."""

    async def close(self) -> None:
        """Give connections back."""

"""What a narinfo and a store both say of a store object."""

from typing import TYPE_CHECKING, Protocol

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.store_path import StorePath

if TYPE_CHECKING:
    from nixcache_oci.nix.signature import Signature


class StoreObject(Protocol):
    """A store object."""

    @property
    def store_path(self) -> StorePath:
        """Its path."""

    @property
    def nar_hash(self) -> NixHash:
        """The sha256 of its NAR."""

    @property
    def nar_size(self) -> int:
        """Bytes in its NAR."""

    @property
    def references(self) -> tuple[str, ...]:
        """Base names, possibly its own among them."""

    @property
    def sigs(self) -> tuple["Signature", ...]:
        """Its signatures."""

    @property
    def ca(self) -> str | None:
        """The content address as written."""

"""What is prefetched, and in which order: first the NAR of a closure that a client asks for first.

Nix asks for narinfos from the root of a closure, and for NARs from its leaves: references first, and those
that are ready by name. Source: facts about Nix clients, "Reading".
"""

from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.closure import references_of
from nixcache_oci.cache.nar_url import hashed_slice_of, sized_blob_of
from nixcache_oci.nix.closure import by_name
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

MAX_NAR_BYTES: Final = 1024 * 1024
"""A NAR in a blob of its own is prefetched if it is smaller, compressed."""

# Most references may be upstream; after so many look-ups, any guess is as good.
_MOST_LOOK_UPS: Final = 32
# Limit of a narinfo to search, and to validate: 1,000 references have 60 KiB.
_MOST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A NAR to prefetch.

    Attributes:
        blob: the NAR, or the pack that it lies in.
        size_bytes: of the NAR, as its narinfo says.
        part: of the pack; None for a blob of its own.
        file_hash: of the part, as its narinfo says.
    """

    blob: Digest
    size_bytes: int
    part: tuple[int, int] | None = None
    file_hash: bytes = b""

    @classmethod
    def for_narinfo(cls, narinfo: bytes) -> Self | None:
        """Prefetch the NAR of a narinfo; None if it is large, or nothing is known to verify it with."""
        if (found := hashed_slice_of(narinfo)) is not None:
            pack, start, end, file_hash = found
            return cls(pack, end - start, (start, end), file_hash)
        sized = sized_blob_of(narinfo)
        return cls(*sized) if sized is not None and sized[1] < MAX_NAR_BYTES else None


def first_of_closure(narinfo: bytes, catalog: Catalog) -> bytes:
    """Follow references from a root, always the first by name that is in the catalog, to a leaf."""
    left = _MOST_LOOK_UPS
    while len(narinfo) <= _MOST_BYTES:
        for reference in sorted(references_of(narinfo), key=by_name):
            if not left:
                return narinfo
            left -= 1
            found = catalog.find(HashPart.of(reference), _MOST_BYTES)
            if found is not None and found != narinfo:  # it may refer to itself
                narinfo = found
                break
        else:
            return narinfo
    return narinfo

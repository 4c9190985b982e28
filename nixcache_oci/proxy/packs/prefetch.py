"""What is prefetched, and in which order: first the NAR of a closure that a client asks for first.

Nix asks for narinfos from the root of a closure, and for NARs from its leaves: references first, and those
that are ready by name. Source: facts about Nix clients, "Reading".
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.nar_url import pack_of, sized_blob_of
from nixcache_oci.nix.closure import by_name
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

MAX_NAR_BYTES: Final = 1024 * 1024
"""A NAR in a blob of its own is prefetched if it is smaller, compressed."""

# The catalog has validated it: parsing a thousand references again would take 4 ms.
_REFERENCES: Final = re.compile(rb"^References:(.*)$", re.MULTILINE)

# Most references may be upstream; after so many look-ups, any guess is as good.
_MOST_LOOK_UPS: Final = 32
# Limit of a narinfo to search, and to validate: 1,000 references have 60 KiB.
_MOST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A blob to prefetch.

    Attributes:
        blob: a pack, or a small NAR.
        is_pack: which of them.
        size_bytes: as a narinfo or an earlier attempt tells; None for a pack of unknown size.
    """

    blob: Digest
    is_pack: bool
    size_bytes: int | None = None

    @classmethod
    def for_narinfo(cls, narinfo: bytes) -> Self | None:
        """Prefetch what has the NAR of a narinfo; None if it is large."""
        if (pack := pack_of(narinfo)) is not None:
            return cls(pack, is_pack=True)
        sized = sized_blob_of(narinfo)
        if sized is None or sized[1] >= MAX_NAR_BYTES:
            return None
        return cls(sized[0], is_pack=False, size_bytes=sized[1])


def first_of_closure(narinfo: bytes, catalog: Catalog) -> bytes:
    """Follow references from a root, always the first by name that is in the catalog, to a leaf."""
    left = _MOST_LOOK_UPS
    while len(narinfo) <= _MOST_BYTES:
        for reference in sorted(_references_of(narinfo), key=by_name):
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


def _references_of(narinfo: bytes) -> list[str]:
    match = _REFERENCES.search(narinfo)
    return match[1].decode().split() if match is not None else []

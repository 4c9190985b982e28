"""Which NAR of a closure a client asks for first: its pack is prefetched first.

Nix asks for narinfos from the root of a closure, and for NARs from its leaves: references first, and those
that are ready by name. Source: facts about Nix clients, "Reading".
"""

import re
from typing import Final

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.nix.closure import by_name
from nixcache_oci.nix.store_path import HashPart

# The catalog has validated it: parsing a thousand references again would take 4 ms.
_REFERENCES: Final = re.compile(rb"^References:(.*)$", re.MULTILINE)

# Most references may be upstream; after so many look-ups, any guess is as good.
_MOST_LOOK_UPS: Final = 32
# Limit of a narinfo to search, and to validate: 1,000 references have 60 KiB.
_MOST_BYTES: Final = 64 * 1024


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

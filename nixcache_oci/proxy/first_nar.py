"""Which NAR of a closure a client asks for first: its pack is worth the connection that is open already.

Nix asks for narinfos from the root of a closure on, and for NARs from its ends on: references first, and of
what is ready in the order of names. Source: facts about Nix clients, "Reading".
"""

from typing import Final

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.nix.closure import by_name
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart

# Most of what a closure refers to may be an upstream's; after so many look-ups, any guess is as good.
_MOST_LOOK_UPS: Final = 32


def first_of_closure(narinfo: bytes, catalog: Catalog) -> bytes:
    """Follow references, always the first by name that is in this cache, to an object without any.

    Args:
        narinfo: of the root, out of the catalog.
        catalog: where the others are.
    """
    left = _MOST_LOOK_UPS
    while True:
        parsed = NarInfo.parse(narinfo)
        for reference in sorted(parsed.references, key=by_name):
            if reference == parsed.store_path.base_name:
                continue
            if not left:
                return narinfo
            left -= 1
            found = catalog.find(HashPart.parse(reference[:32]))
            if found is not None:
                narinfo = found
                break
        else:
            return narinfo

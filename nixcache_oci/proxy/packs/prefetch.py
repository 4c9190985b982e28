"""What is prefetched, and in which order: first the NAR of a closure that a client asks for first.

Nix asks for narinfos from the root of a closure, and for NARs from its leaves: references first, and those
that are ready by name. Source: facts about Nix clients, "Reading".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, pack_of, sized_blob_of
from nixcache_oci.nix.closure import by_name
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

MAX_NAR_BYTES: Final = 1024 * 1024
"""A NAR in a blob of its own is prefetched if it is smaller, compressed."""

# What waits for its turn to be prefetched: 64 packs, or 1,024 NARs. A crawl names thousands.
_MOST_PLACES: Final = 1024
_PLACES_OF_PACK: Final = 16
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
        size_bytes: of a NAR, as its narinfo states; of a pack, the most it may have.
    """

    blob: Digest
    is_pack: bool
    size_bytes: int

    @classmethod
    def pack(cls, blob: Digest) -> Self:
        """Prefetch a pack."""
        return cls(blob, is_pack=True, size_bytes=MAX_PACK_BYTES)

    @classmethod
    def for_narinfo(cls, narinfo: bytes) -> Self | None:
        """Prefetch what has the NAR of a narinfo; None if it is large."""
        if (pack := pack_of(narinfo)) is not None:
            return cls.pack(pack)
        sized = sized_blob_of(narinfo)
        if sized is None or sized[1] >= MAX_NAR_BYTES:
            return None
        return cls(sized[0], is_pack=False, size_bytes=sized[1])


class PrefetchQueue:
    """What is to be prefetched later, in order; bounded: what finds no place is forgotten."""

    def __init__(self) -> None:
        self._waiting: dict[Digest, tuple[Prefetch, float]] = {}
        self._free = _MOST_PLACES

    def __iter__(self) -> Iterator[Prefetch]:
        return iter([each for each, _since in self._waiting.values()])

    @property
    def is_full(self) -> bool:
        """Whether there is no place for anything."""
        return not self._free

    def add(self, wanted: Prefetch, now: float) -> None:
        """Append what does not wait yet."""
        if wanted.blob not in self._waiting and _places(wanted) <= self._free:
            self._waiting[wanted.blob] = wanted, now
            self._free -= _places(wanted)

    def discard(self, blob: Digest) -> None:
        """Remove a blob, if it waits."""
        if (found := self._waiting.pop(blob, None)) is not None:
            self._free += _places(found[0])

    def discard_before(self, oldest: float) -> None:
        """Remove what was added earlier."""
        for blob in [blob for blob, (_, since) in self._waiting.items() if since < oldest]:
            self.discard(blob)


def _places(wanted: Prefetch) -> int:
    return _PLACES_OF_PACK if wanted.is_pack else 1


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

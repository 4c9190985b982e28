"""Look-ups: a hit, a miss, or unknown. Three answers inside, and one place where they become HTTP.

Source: design section 3, promises 1 and 2; facts about Nix clients, "Reading".
"""

from dataclasses import dataclass
from enum import Enum

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.table import HashLetters
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex


class Answer(Enum):
    """What is known of a store path."""

    HIT = "hit"
    UPSTREAM_HIT = "upstream hit"
    MISS = "miss"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LookUp:
    """An answer, with the narinfo where there is one."""

    answer: Answer
    narinfo: bytes | None = None


def find_hit(letters: HashLetters, catalog: Catalog | None, counters: Counters) -> bytes | None:
    """Look into this cache; a hit is counted, and all else is not decided here."""
    narinfo = catalog.find_letters(letters) if catalog is not None else None
    if narinfo is not None:
        counters.hits += 1
    return narinfo


async def look_up(hash_part: HashPart, index: LiveIndex, upstreams: Upstreams, counters: Counters) -> LookUp:
    """Look into this cache, then ask the upstreams; each outcome is counted apart."""
    catalog = index.catalog or await index.current()
    if (narinfo := find_hit(HashLetters(hash_part.encode()), catalog, counters)) is not None:
        return LookUp(Answer.HIT, narinfo)
    try:
        found = await upstreams.find(hash_part)
    except UpstreamError:
        counters.unknown += 1
        return LookUp(Answer.UNKNOWN)
    if found is not None:
        counters.upstream_hits += 1
        return LookUp(Answer.UPSTREAM_HIT, found.render().encode())
    if catalog is None:
        counters.unknown += 1
        return LookUp(Answer.UNKNOWN)
    counters.misses += 1
    return LookUp(Answer.MISS)

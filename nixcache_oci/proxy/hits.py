"""Hits: narinfos of this cache, out of memory, for requests that wait for nothing else.

Source: design section 3, promises 1 and 9.
"""

from nixcache_oci.cache.table import HashLetters
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import find_hit
from nixcache_oci.proxy.pack_cache import PackCache


class Hits:
    """Looks narinfos up, counts what it finds, and has packs fetched that will be asked for.

    Args:
        index: holds the catalog.
        packs: fetches ahead.
        counters: of the proxy.
    """

    def __init__(self, index: LiveIndex, packs: PackCache, counters: Counters) -> None:
        self._index = index
        self._packs = packs
        self._counters = counters

    def take(self, letters: HashLetters, *, is_get: bool) -> bytes | None:
        """Give a narinfo; None where there is none, or no index yet.

        Args:
            letters: of the hash part.
            is_get: whether the client wants the narinfo itself: on HEAD, nothing is fetched ahead.
        """
        narinfo = find_hit(letters, self._index.catalog, self._counters)
        if narinfo is not None and is_get:
            self._packs.fetch_ahead_for(narinfo)
        return narinfo

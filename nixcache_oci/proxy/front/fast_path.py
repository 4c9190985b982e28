"""The fast path: narinfos, and small NARs that are in memory.

Source: design section 3, promises 1 and 9.
"""

import math
import time
from typing import Final

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import find_hit
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.prefetch import first_of_closure
from nixcache_oci.proxy.signature_union import SignatureUnion

# The first narinfo after a pause is the root of a closure; the others follow at once.
_PAUSE_SECONDS: Final = 0.1


class FastPath:
    """Looks up, counts hits, and prefetches."""

    def __init__(
        self, index: LiveIndex, packs: PackCache, nars: NarSource, counters: Counters, union: SignatureUnion
    ) -> None:
        self._union = union
        self._index = index
        self._packs = packs
        self._nars = nars
        self._counters = counters
        self._asked_at = -math.inf

    def get_narinfo(self, hash_part: HashPartBytes, *, is_get: bool) -> bytes | None:
        """Return a narinfo; None if there is none, no index yet, or upstreams have to be asked first.

        On HEAD, nothing is prefetched.
        """
        narinfo = find_hit(hash_part, self._index.catalog, self._union)
        if narinfo is None:
            return None
        self._counters.hits += 1
        if is_get:
            self.prefetch_for(narinfo)
        return narinfo

    def prefetch_for(self, narinfo: bytes) -> None:
        """Prefetch a narinfo's NAR or its pack; at the root of a closure, first that of the first NAR."""
        catalog = self._index.catalog
        now = time.monotonic()
        if catalog is not None and now - self._asked_at > _PAUSE_SECONDS:
            self._packs.prefetch_for(first_of_closure(narinfo, catalog))
        self._asked_at = now
        self._packs.prefetch_for(narinfo)

    def get_nar(self, url: NarUrl, *, is_get: bool) -> memoryview | None:
        """Return a NAR of at most 256 KiB from memory, or None; on HEAD, it is not counted.

        The view keeps a whole pack in memory: use it at once, do not queue it.
        """
        nar = self._nars.cached(url)
        if nar is not None and is_get:
            self._counters.nars += 1
            self._counters.nar_bytes += len(nar)
        return nar

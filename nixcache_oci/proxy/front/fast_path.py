"""The fast path: narinfos and slices of packs that are in memory, for requests that need nothing else.

Source: design section 3, promises 1 and 9.
"""

import math
import time
from typing import Final

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table import HashPartBytes
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import find_hit
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.prefetch import first_of_closure
from nixcache_oci.proxy.signature_union import SignatureUnion

# The first narinfo after so long is the root of a closure; behind it come all others in a moment.
_PAUSE_SECONDS: Final = 0.1


class FastPath:
    """Looks things up, counts what it finds, and has packs fetched that will be asked for.

    Args:
        index: holds the catalog.
        packs: fetches ahead.
        nars: gives slices of packs.
        counters: of the proxy.
        union: knows what upstreams add to narinfos of this cache.
    """

    def __init__(
        self,
        index: LiveIndex,
        packs: PackCache,
        nars: NarSource,
        counters: Counters,
        union: SignatureUnion,
    ) -> None:
        self._union = union
        self._index = index
        self._packs = packs
        self._nars = nars
        self._counters = counters
        self._asked_at = -math.inf

    def get_narinfo(self, hash_part: HashPartBytes, *, is_get: bool) -> bytes | None:
        """Give a narinfo; None where there is none, no index yet, or upstreams have to be asked first.

        Args:
            hash_part: that is wanted.
            is_get: whether the client wants the narinfo itself: on HEAD, nothing is fetched ahead.
        """
        narinfo = find_hit(hash_part, self._index.catalog, self._union)
        if narinfo is None:
            return None
        self._counters.hits += 1
        if is_get:
            self.prefetch_for(narinfo)
        return narinfo

    def prefetch_for(self, narinfo: bytes) -> None:
        """Have the pack fetched that its NAR lies in; at the root of a closure, first that of the first NAR.

        Args:
            narinfo: out of the catalog, which a client asked for.
        """
        catalog = self._index.catalog
        now = time.monotonic()
        if catalog is not None and now - self._asked_at > _PAUSE_SECONDS:
            self._packs.prefetch_for(first_of_closure(narinfo, catalog))
        self._asked_at = now
        self._packs.prefetch_for(narinfo)

    def get_slice(self, url: NarUrl, *, is_get: bool) -> memoryview | None:
        """Give a NAR that lies in a pack; None where its pack is not in memory, or does not hold it.

        Args:
            url: of the NAR.
            is_get: whether the client wants the NAR itself: on HEAD, nothing is counted.

        Returns:
            A view that keeps the whole pack in memory: for use at once, not for a queue.
        """
        nar = self._nars.cached_slice(url)
        if nar is not None and is_get:
            self._counters.nars += 1
            self._counters.nar_bytes += len(nar)
        return nar

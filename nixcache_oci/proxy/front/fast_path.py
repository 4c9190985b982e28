"""The fast path: narinfos, and small NARs that are in memory.

Source: design section 3, promises 1 and 9.
"""

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.proxy.cache_set import CacheSet
from nixcache_oci.proxy.lookup import find_hit
from nixcache_oci.proxy.signature_union import SignatureUnion


class FastPath:
    """Looks up, counts hits, and prefetches; a prefix is None at the root."""

    def __init__(self, caches: CacheSet, union: SignatureUnion) -> None:
        self._caches = caches
        self._union = union

    def get_narinfo(self, hash_part: HashPartBytes, *, is_get: bool) -> bytes | None:
        """Return a narinfo of the root; None if there is none, no index yet, or somebody must be asked first.

        On HEAD, nothing is prefetched.
        """
        hit = find_hit(hash_part, self._caches.configured, self._union)
        if hit is None:
            return None
        cache, narinfo = hit
        cache.counters.hits += 1
        if is_get:
            cache.prefetch_for(narinfo)
        return narinfo

    def get_narinfo_below(self, prefix: bytes, hash_part: HashPartBytes, *, is_get: bool) -> bytes | None:
        """Return a narinfo of the cache with a prefix, likewise."""
        cache = self._caches.at(prefix)
        narinfo = cache.find(hash_part) if cache is not None else None
        if cache is None or narinfo is None:
            return None
        cache.counters.hits += 1
        if is_get:
            cache.prefetch_for(narinfo)
        return narinfo

    def get_nar(self, url: NarUrl, prefix: bytes | None = None, *, is_get: bool) -> memoryview | None:
        """Return a NAR of at most 256 KiB from memory, or None; on HEAD, it is not counted.

        The view keeps a whole pack in memory: use it at once, do not queue it.
        """
        if prefix is None:
            caches = self._caches.configured
        else:
            opened = self._caches.at(prefix)
            caches = (opened,) if opened is not None else ()
        for cache in caches:
            nar = cache.nars.cached(url)
            if nar is not None:
                if is_get:
                    cache.counters.nars += 1
                    cache.counters.nar_bytes += len(nar)
                return nar
        return None

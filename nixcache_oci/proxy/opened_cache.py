"""One cache that is open: its index, its NARs, and what is uploaded to it."""

import math
import time
from typing import Final

from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.packs.prefetch import first_of_closure
from nixcache_oci.proxy.prefix import url_prefix
from nixcache_oci.proxy.refresh_coalescer import RefreshCoalescer
from nixcache_oci.proxy.uploads.uploads import Uploads
from nixcache_oci.proxy.verified import Quarantine

# The first narinfo after a pause is the root of a closure; the others follow at once.
_PAUSE_SECONDS: Final = 0.1

# StorePath comes before it.
_URL_START: Final = b"\nURL: "


class OpenedCache:
    """The parts of one cache; ``close`` closes them, but not the repository.

    Attributes:
        public_keys: required signers of its narinfos; empty for none.
        prefix: that names it in URLs; None if nothing does.
        uploads: None if none are taken.
        url_start: of the URLs of its narinfos at the root; None if they need no prefix.
        used_at: when a request last used it, in monotonic seconds.
    """

    def __init__(
        self,
        repository: Repository,
        index: LiveIndex,
        counters: Counters,
        budget: PackBudget,
        public_keys: tuple[PublicKey, ...] = (),
        uploads: Uploads | None = None,
        prefix: str | None = None,
    ) -> None:
        quarantine = Quarantine()
        self.repository = repository
        self.index = index
        self.counters = counters
        self.public_keys = public_keys
        self.uploads = uploads
        self.prefix = prefix
        self.used_at = time.monotonic()
        self.packs = PackCache(repository, quarantine, counters, budget)
        self.nars = NarSource(repository, self.packs, quarantine, lambda: index.catalog)
        self.refreshes = RefreshCoalescer(index)
        self._asked_at = -math.inf
        self.url_start: bytes | None = None

    def put_prefix_into_urls(self) -> None:
        """Hand out NAR URLs with the prefix from now on: this cache is not the only one of the root."""
        if self.prefix is not None:
            self.url_start = b"%b%b/" % (_URL_START, url_prefix(self.prefix).encode())

    def find(self, hash_part: HashPartBytes) -> bytes | None:
        """Look up a narinfo, as it is served below the prefix."""
        catalog = self.index.catalog
        found = catalog.find_hash_part(hash_part) if catalog is not None else None
        return found[0] if found is not None else None

    def hand_out(self, narinfo: bytes) -> bytes:
        """Return a narinfo of this cache as the root serves it."""
        return narinfo if self.url_start is None else narinfo.replace(_URL_START, self.url_start, 1)

    def prefetch_for(self, narinfo: bytes) -> None:
        """Prefetch a narinfo's NAR or its pack; at the root of a closure, first that of the first NAR."""
        if self.url_start is not None:
            narinfo = narinfo.replace(self.url_start, _URL_START, 1)
        catalog = self.index.catalog
        now = time.monotonic()
        if catalog is not None and now - self._asked_at > _PAUSE_SECONDS:
            self.packs.prefetch_for(first_of_closure(narinfo, catalog))
        self._asked_at = now
        self.packs.prefetch_for(narinfo)

    async def close(self) -> None:
        """Cancel all that runs."""
        await self.refreshes.close()
        await self.index.close()
        await self.nars.close()
        await self.packs.close()

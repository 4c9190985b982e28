"""This cache's narinfos with upstream signatures of the same objects.

A hit that a client key signed costs no network. For other hits, an upstream may have a signature that clients
trust, and Nix, which would have found it there, must not fail here. So upstreams are asked once, with a short
timeout, and the answer is cached.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.upstream.address import Chain
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.nix.variants import choose_variant

MOST_REMEMBERED: Final = 16_384
WAIT_SECONDS: Final = 2.0
"""Timeout of upstreams; after it, no hit waits for them for half a minute."""

_SLOW_SECONDS: Final = 30.0
_ANSWERED_SECONDS: Final = 3600.0  # as long as Nix itself remembers that a path is missing
_UNKNOWN_SECONDS: Final = 60.0


class Finder(Protocol):
    """Finds narinfos elsewhere."""

    async def find(self, hash_part: HashPart, via: Chain = ()) -> NarInfo | None:
        """Return one, or None; raises UpstreamError if that is unknown."""


class SignatureUnion:
    """Adds other caches' signatures to narinfos, and caches the result; clients trust ``keys``.

    Attributes:
        has_upstreams: whether there is anybody to ask.
    """

    def __init__(self, finder: Finder, keys: tuple[PublicKey, ...], *, has_upstreams: bool = True) -> None:
        self.has_upstreams = has_upstreams
        self._finder = finder
        self._keys = keys
        self._memo: BoundedCache[HashPartBytes, tuple[bytes, bytes, float]] = BoundedCache(MOST_REMEMBERED)
        self._clock = asyncio.get_running_loop().time
        self._slow_until = 0.0

    def known(self, hash_part: HashPartBytes, narinfo: bytes) -> bytes | None:
        """Return what is served for a narinfo of this cache; None if upstreams have to be asked first."""
        entry = self._memo.get(hash_part)
        if entry is None or entry[0] != narinfo or entry[2] < self._clock():
            return None
        return entry[1]

    async def unite(self, hash_part: HashPartBytes, narinfo: bytes, others: Sequence[bytes] = ()) -> bytes:
        """Return what is served for a narinfo of this cache, after asking upstreams if necessary.

        ``others`` are narinfos of the same path in caches that are served beside this one.
        """
        served = self.known(hash_part, narinfo)
        if served is not None:
            return served
        if self._clock() < self._slow_until:
            return narinfo
        found: NarInfo | None = None
        seconds = _ANSWERED_SECONDS
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                found = await self._finder.find(HashPart(hash_part.decode()))
        except TimeoutError:
            self._slow_until = self._clock() + _SLOW_SECONDS
            seconds = _UNKNOWN_SECONDS
        except UpstreamError:
            seconds = _UNKNOWN_SECONDS
        served = narinfo
        if others or found is not None:
            variants = [NarInfo.parse(one) for one in (narinfo, *others)]
            served = choose_variant([*variants, *([found] if found else [])], self._keys).render().encode()
        self._memo.put(hash_part, (narinfo, served, self._clock() + seconds))
        return served

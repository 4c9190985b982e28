"""This cache's narinfos with the signatures that upstreams have of the same objects.

A hit costs no network where a key signed it that clients are known to trust. Where none did, an upstream may
have the path under a key that they do trust, and Nix, which would have found it there, must not fail for
asking here. So upstreams are asked once, not for long, and what they said is remembered.
"""

import asyncio
from typing import Final, Protocol

from nixcache_oci.cache.table import HashPartBytes
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.nix.variants import choose_variant

MOST_REMEMBERED: Final = 16_384
WAIT_SECONDS: Final = 2.0
"""How long a hit waits for upstreams; after one that took longer, none waits for half a minute."""

_SLOW_SECONDS: Final = 30.0
_ANSWERED_SECONDS: Final = 3600.0  # as long as Nix itself remembers that a path is missing
_UNKNOWN_SECONDS: Final = 60.0


class _Finder(Protocol):
    async def find(self, hash_part: HashPart) -> NarInfo | None:
        """Give a narinfo of an upstream."""


class SignatureUnion:
    """Unites signatures, and remembers the outcome.

    Args:
        finder: asks upstreams.
        keys: those that clients are known to trust.
    """

    def __init__(self, finder: _Finder, keys: tuple[PublicKey, ...]) -> None:
        self._finder = finder
        self._keys = keys
        self._memo: BoundedCache[HashPartBytes, tuple[bytes, bytes, float]] = BoundedCache(MOST_REMEMBERED)
        self._clock = asyncio.get_running_loop().time
        self._slow_until = 0.0

    def known(self, hash_part: HashPartBytes, narinfo: bytes) -> bytes | None:
        """Give what is served for a narinfo of this cache; None where upstreams have to be asked first."""
        entry = self._memo.get(hash_part)
        if entry is None or entry[0] != narinfo or entry[2] < self._clock():
            return None
        return entry[1]

    async def unite(self, hash_part: HashPartBytes, narinfo: bytes) -> bytes:
        """Give what is served for a narinfo of this cache, after asking upstreams if that is due."""
        served = self.known(hash_part, narinfo)
        if served is not None:
            return served
        if self._clock() < self._slow_until:
            return narinfo
        served, seconds = narinfo, _ANSWERED_SECONDS
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                found = await self._finder.find(HashPart(hash_part.decode()))
            if found is not None:
                served = choose_variant([NarInfo.parse(narinfo), found], self._keys).render().encode()
        except TimeoutError:
            self._slow_until = self._clock() + _SLOW_SECONDS
            seconds = _UNKNOWN_SECONDS
        except UpstreamError:
            seconds = _UNKNOWN_SECONDS
        self._memo.put(hash_part, (narinfo, served, self._clock() + seconds))
        return served

"""Look-ups: a hit, a miss, or unknown. The endpoint turns these verdicts into HTTP.

Source: design section 3, promises 1 and 2; facts about Nix clients, "Reading".
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.table import HashPartBytes
from nixcache_oci.clients.upstream.address import Chain
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.signature_union import SignatureUnion

_log = logging.getLogger(__name__)

MOST_LOOK_UPS: Final = 2048
"""Look-ups at upstreams that are under way or wait for their turn; beyond, a path is unknown at once."""


class Verdict(Enum):
    """What is known of a store path."""

    HIT = "hit"
    UPSTREAM_HIT = "upstream hit"
    MISS = "miss"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LookUpResult:
    """A verdict, with the narinfo where there is one."""

    verdict: Verdict
    narinfo: bytes | None = None


class Finder(Protocol):
    """Knows more narinfos."""

    async def find(self, hash_part: HashPart, via: Chain = ()) -> NarInfo | None:
        """Give one; None where there is none, UpstreamError where nobody can tell."""


class LoopFinder(Finder, Protocol):
    """Notices besides where a request came through here before."""

    def is_loop(self, via: Chain) -> bool:
        """Tell whether a request that came through these proxies may not go on from here."""


class UpstreamFinder:
    """Asks upstreams: for each hash part once at a time, and for so many at once.

    A request that came through other proxies does not share a look-up with one that did not: those proxies
    may wait for the one, and the other would wait for them.

    Args:
        upstreams: to ask.
        most: how many look-ups go on at once; others wait.
    """

    def __init__(self, upstreams: LoopFinder, most: int) -> None:
        self._upstreams = upstreams
        self._turns = asyncio.Semaphore(most)
        self._asking: dict[tuple[HashPart, Chain], asyncio.Task[NarInfo | None]] = {}

    async def find(self, hash_part: HashPart, via: Chain = ()) -> NarInfo | None:
        """Ask; who asks for the same one meanwhile shares the look-up. A loop ends at once.

        Raises:
            UpstreamError: nobody has it, but somebody could not say, or too many look-ups are under way.
        """
        if self._upstreams.is_loop(via):
            return None
        key = hash_part, via
        asking = self._asking.get(key)
        if asking is None:
            if len(self._asking) >= MOST_LOOK_UPS:
                _log.warning(
                    "look-ups at upstreams are at their limit", extra={"fields": {"limit": MOST_LOOK_UPS}}
                )
                raise UpstreamError(f"{MOST_LOOK_UPS} look-ups are under way")
            asking = asyncio.create_task(self._ask(hash_part, via), name=f"narinfo {hash_part}")
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._forget(key, task))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, hash_part: HashPart, via: Chain) -> NarInfo | None:
        async with self._turns:
            return await self._upstreams.find(hash_part, via)

    def _forget(self, key: tuple[HashPart, Chain], task: asyncio.Task[NarInfo | None]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # whoever waited for it may be gone


def find_hit(hash_part: HashPartBytes, catalog: Catalog | None, union: SignatureUnion) -> bytes | None:
    """Look into this cache, and what is remembered of upstreams; all else is not decided here."""
    found = catalog.find_hash_part(hash_part) if catalog is not None else None
    if found is None or found[1]:
        return found and found[0]
    return union.known(hash_part, found[0])


async def look_up(
    hash_part: HashPart,
    index: LiveIndex,
    upstreams: Finder,
    counters: Counters,
    union: SignatureUnion,
    via: Chain = (),
) -> LookUpResult:
    """Look into this cache, then ask the upstreams; each outcome is counted apart.

    A request of another proxy gets what this cache itself has: that proxy asks whom it likes.
    """
    catalog = index.catalog or await index.current()
    wanted = HashPartBytes(hash_part.encode())
    hit = catalog.find_hash_part(wanted) if catalog is not None else None
    if hit is not None:
        narinfo, is_trusted = hit
        if not is_trusted and not via:
            narinfo = await union.unite(wanted, narinfo)
        counters.hits += 1
        return LookUpResult(Verdict.HIT, narinfo)
    try:
        found = await upstreams.find(hash_part, via)
    except UpstreamError:
        counters.unknown += 1
        return LookUpResult(Verdict.UNKNOWN)
    if found is not None:
        counters.upstream_hits += 1
        return LookUpResult(Verdict.UPSTREAM_HIT, found.render().encode())
    if catalog is None:
        counters.unknown += 1
        return LookUpResult(Verdict.UNKNOWN)
    counters.misses += 1
    return LookUpResult(Verdict.MISS)

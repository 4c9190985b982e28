"""Look-ups: a hit, a miss, or unknown. The endpoint turns these verdicts into HTTP.

Source: design section 3, promises 1 and 2; facts about Nix clients, "Reading".
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.upstream.address import Chain
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.signature_union import Finder, SignatureUnion

_log = logging.getLogger(__name__)

MOST_LOOK_UPS: Final = 2048
"""Upstream look-ups running or waiting; beyond, a path is unknown at once."""


class Verdict(Enum):
    """What is known of a store path."""

    HIT = "hit"
    UPSTREAM_HIT = "upstream hit"
    MISS = "miss"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LookUpResult:
    """A verdict, with the narinfo if there is one."""

    verdict: Verdict
    narinfo: bytes | None = None
    found: NarInfo | None = None  # the same, of an upstream hit


class LoopFinder(Finder, Protocol):
    """A finder that detects loops, and looks up ahead."""

    async def find_ahead(self, hash_part: HashPart) -> NarInfo | None:
        """Look up for nobody yet, as ``Upstreams.find_ahead`` does."""

    def is_loop(self, via: Chain) -> bool:
        """Check whether a request through these proxies has been here before."""


class UpstreamFinder:
    """Asks upstreams: once at a time per hash part, and at most ``most`` at once.

    A request through other proxies does not share a look-up with a direct one: the direct one may wait for
    those proxies, which would wait for it.
    """

    def __init__(self, upstreams: LoopFinder, most: int) -> None:
        self._upstreams = upstreams
        self._turns = asyncio.Semaphore(most)
        self._asking: dict[tuple[HashPart, Chain], asyncio.Task[NarInfo | None]] = {}
        self._ahead: dict[HashPart, asyncio.Task[NarInfo | None]] = {}

    async def find(self, hash_part: HashPart, via: Chain = ()) -> NarInfo | None:
        """Look up; concurrent requests share the look-up. A loop ends at once.

        Raises UpstreamError if an upstream could not answer and no other has it, or too many look-ups are
        running.
        """
        if self._upstreams.is_loop(via):
            return None
        ahead = self._ahead.get(hash_part) if not via else None
        if ahead is not None:
            with suppress(UpstreamError):  # not all may be asked ahead
                if (found := await asyncio.shield(ahead)) is not None:
                    return found
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
            asking.add_done_callback(retrieve)
            asking.add_done_callback(lambda _: self._asking.pop(key))
        return await asyncio.shield(asking)

    async def find_ahead(self, hash_part: HashPart) -> NarInfo | None:
        """Look up what no client asked for yet; one that does meanwhile shares a hit.

        None if it is being looked up, or no upstream that may be asked ahead has it. Raises UpstreamError if
        one could not answer, and no other has it.
        """
        if hash_part in self._ahead or (hash_part, ()) in self._asking:
            return None

        async def ask() -> NarInfo | None:
            async with self._turns:
                return await self._upstreams.find_ahead(hash_part)

        self._ahead[hash_part] = asking = asyncio.create_task(ask(), name=f"narinfo {hash_part} ahead")
        asking.add_done_callback(retrieve)
        asking.add_done_callback(lambda _: self._ahead.pop(hash_part))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Cancel running look-ups."""
        await cancel_all([*self._asking.values(), *self._ahead.values()])

    async def _ask(self, hash_part: HashPart, via: Chain) -> NarInfo | None:
        async with self._turns:
            return await self._upstreams.find(hash_part, via)


def find_hit(hash_part: HashPartBytes, catalog: Catalog | None, union: SignatureUnion) -> bytes | None:
    """Look up in this cache and in the signatures known of upstreams; None if that does not suffice."""
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
    find_spooled: Callable[[HashPart], bytes | None] = lambda _: None,
) -> LookUpResult:
    """Look up in this cache, then in what is uploaded, then at the upstreams, and count the verdict.

    A hit for another proxy is not united with upstream signatures: that proxy asks its own upstreams.
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
    spooled = find_spooled(hash_part)
    if spooled is not None:
        counters.hits += 1
        return LookUpResult(Verdict.HIT, spooled)
    try:
        found = await upstreams.find(hash_part, via)
    except UpstreamError:
        counters.unknown += 1
        return LookUpResult(Verdict.UNKNOWN)
    if found is not None:
        counters.upstream_hits += 1
        return LookUpResult(Verdict.UPSTREAM_HIT, found.render().encode(), found)
    if catalog is None:
        counters.unknown += 1
        return LookUpResult(Verdict.UNKNOWN)
    counters.misses += 1
    return LookUpResult(Verdict.MISS)

"""Look-ups: a hit, a miss, or unknown. The endpoint turns these verdicts into HTTP.

Source: design section 3, promises 1 and 2; facts about Nix clients, "Reading".
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.upstream.address import Chain
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.opened_cache import OpenedCache
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
    """A verdict, with the narinfo if there is one, and the cache that has it."""

    verdict: Verdict
    narinfo: bytes | None = None
    cache: OpenedCache | None = None
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


def find_hit(
    hash_part: HashPartBytes, caches: Iterable[OpenedCache], union: SignatureUnion
) -> tuple[OpenedCache, bytes] | None:
    """Look up in these caches, and in the signatures known of others; None if that does not suffice.

    A narinfo that clients are known to trust is preferred, then the first cache.
    """
    first: tuple[OpenedCache, bytes] | None = None
    is_alone = not union.has_upstreams
    for cache in caches:
        catalog = cache.index.catalog
        found = catalog.find_hash_part(hash_part) if catalog is not None else None
        if found is not None:
            narinfo = found[0] if cache.url_start is None else cache.hand_out(found[0])
            if found[1]:
                return cache, narinfo
            if first is None:
                first = cache, narinfo
            else:
                is_alone = False
    if first is None or is_alone:
        return first
    known = union.known(hash_part, first[1])
    return (first[0], known) if known is not None else None


async def look_up(
    hash_part: HashPart,
    caches: Sequence[OpenedCache],
    upstreams: Finder,
    counters: Counters,
    union: SignatureUnion,
    via: Chain = (),
) -> LookUpResult:
    """Look up in these caches, in what is uploaded to them, then at the upstreams, and count the verdict.

    A hit ends it, whatever cannot be asked meanwhile; a miss is what all of them deny. A hit for another
    proxy is not united with other signatures: that proxy asks its own upstreams.
    """
    wanted = HashPartBytes(hash_part.encode())
    variants, is_trusted = _find_variants(wanted, caches)
    if not variants:
        await asyncio.gather(*(cache.index.current() for cache in caches))
        variants, is_trusted = _find_variants(wanted, caches)
    if variants:
        cache, narinfo = variants[0]
        if not is_trusted and not via and (union.has_upstreams or len(variants) > 1):
            narinfo = await union.unite(wanted, narinfo, [other for _, other in variants[1:]])
        cache.counters.hits += 1
        return LookUpResult(Verdict.HIT, narinfo, cache)
    spooled = _find_spooled(hash_part, caches)
    if spooled is not None:
        return spooled
    is_known = _count_denials(caches)
    try:
        found = await upstreams.find(hash_part, via)
    except UpstreamError:
        found, is_known = None, False
    if found is not None:
        counters.upstream_hits += 1
        return LookUpResult(Verdict.UPSTREAM_HIT, found.render().encode(), found=found)
    return _count_absence(counters, is_known=is_known)


async def look_up_in(cache: OpenedCache, hash_part: HashPart, counters: Counters) -> LookUpResult:
    """Look up in one cache alone, and count the verdict: clients have other caches beside it."""
    if (narinfo := cache.find(HashPartBytes(hash_part.encode()))) is None:
        await cache.index.current()
        narinfo = cache.find(HashPartBytes(hash_part.encode()))
    if narinfo is not None:
        cache.counters.hits += 1
        return LookUpResult(Verdict.HIT, narinfo, cache)
    spooled = _find_spooled(hash_part, (cache,))
    if spooled is not None:
        return spooled
    return _count_absence(counters, is_known=_count_denials((cache,)))


def _find_variants(
    wanted: HashPartBytes, caches: Iterable[OpenedCache]
) -> tuple[list[tuple[OpenedCache, bytes]], bool]:
    """Find what the caches have; if one that clients are known to trust is among it, that alone, and True."""
    variants = []
    for cache in caches:
        catalog = cache.index.catalog
        found = catalog.find_hash_part(wanted) if catalog is not None else None
        if found is not None:
            hit = cache, cache.hand_out(found[0])
            if found[1]:
                return [hit], True
            variants.append(hit)
    return variants, False


def _find_spooled(hash_part: HashPart, caches: Iterable[OpenedCache]) -> LookUpResult | None:
    for cache in caches:
        spooled = cache.uploads.find(hash_part) if cache.uploads is not None else None
        if spooled is not None:
            cache.counters.hits += 1
            return LookUpResult(Verdict.HIT, cache.hand_out(spooled), cache)
    return None


def _count_denials(caches: Iterable[OpenedCache]) -> bool:
    """Count what each cache answered, and tell whether all of them know."""
    is_known = True
    for cache in caches:
        if cache.index.catalog is None:
            cache.counters.unknown += 1
            is_known = False
        else:
            cache.counters.misses += 1
    return is_known


def _count_absence(counters: Counters, *, is_known: bool) -> LookUpResult:
    if is_known:
        counters.misses += 1
        return LookUpResult(Verdict.MISS)
    counters.unknown += 1
    return LookUpResult(Verdict.UNKNOWN)

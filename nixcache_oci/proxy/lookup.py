"""Look-ups: a hit, a miss, or unknown. Three answers inside, and one place where they become HTTP.

Source: design section 3, promises 1 and 2; facts about Nix clients, "Reading".
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.table import HashLetters
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex

_log = logging.getLogger(__name__)

MOST_LOOK_UPS: Final = 2048
"""Look-ups at upstreams that are under way or wait for their turn; beyond, a path is unknown at once."""


class Answer(Enum):
    """What is known of a store path."""

    HIT = "hit"
    UPSTREAM_HIT = "upstream hit"
    MISS = "miss"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LookUp:
    """An answer, with the narinfo where there is one."""

    answer: Answer
    narinfo: bytes | None = None


class Finder(Protocol):
    """Knows more narinfos."""

    async def find(self, hash_part: HashPart) -> NarInfo | None:
        """Give one; None where there is none, UpstreamError where nobody can tell."""


class UpstreamFinder:
    """Asks upstreams: for each hash part once at a time, and for so many at once.

    Args:
        upstreams: to ask.
        most: how many look-ups go on at once; others wait.
    """

    def __init__(self, upstreams: Finder, most: int) -> None:
        self._upstreams = upstreams
        self._turns = asyncio.Semaphore(most)
        self._asking: dict[HashPart, asyncio.Task[NarInfo | None]] = {}

    async def find(self, hash_part: HashPart) -> NarInfo | None:
        """Ask; who asks for the same one meanwhile shares the look-up.

        Raises:
            UpstreamError: nobody has it, but somebody could not say, or too many look-ups are under way.
        """
        asking = self._asking.get(hash_part)
        if asking is None:
            if len(self._asking) >= MOST_LOOK_UPS:
                _log.warning(
                    "look-ups at upstreams are at their limit", extra={"fields": {"limit": MOST_LOOK_UPS}}
                )
                raise UpstreamError(f"{MOST_LOOK_UPS} look-ups are under way")
            asking = asyncio.create_task(self._ask(hash_part), name=f"narinfo {hash_part}")
            self._asking[hash_part] = asking
            asking.add_done_callback(lambda task: self._forget(hash_part, task))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, hash_part: HashPart) -> NarInfo | None:
        async with self._turns:
            return await self._upstreams.find(hash_part)

    def _forget(self, hash_part: HashPart, task: asyncio.Task[NarInfo | None]) -> None:
        del self._asking[hash_part]
        if not task.cancelled():
            task.exception()  # whoever waited for it may be gone


def find_hit(letters: HashLetters, catalog: Catalog | None, counters: Counters) -> bytes | None:
    """Look into this cache; a hit is counted, and all else is not decided here."""
    found = catalog.find_letters(letters) if catalog is not None else None
    if found is None:
        return None
    counters.hits += 1
    return found[0]


async def look_up(hash_part: HashPart, index: LiveIndex, upstreams: Finder, counters: Counters) -> LookUp:
    """Look into this cache, then ask the upstreams; each outcome is counted apart."""
    catalog = index.catalog or await index.current()
    if (narinfo := find_hit(HashLetters(hash_part.encode()), catalog, counters)) is not None:
        return LookUp(Answer.HIT, narinfo)
    try:
        found = await upstreams.find(hash_part)
    except UpstreamError:
        counters.unknown += 1
        return LookUp(Answer.UNKNOWN)
    if found is not None:
        counters.upstream_hits += 1
        return LookUp(Answer.UPSTREAM_HIT, found.render().encode())
    if catalog is None:
        counters.unknown += 1
        return LookUp(Answer.UNKNOWN)
    counters.misses += 1
    return LookUp(Answer.MISS)

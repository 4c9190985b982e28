"""All caches that are open, by the prefixes that name them."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import Final

from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.on_demand.caches import OnDemandCaches
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.prefix import parse_prefix, spellings
from nixcache_oci.proxy.uploads.interface import UploadSettings

# What the caches of the root answer is not what the root answers: another one may know.
_OUTCOMES: Final = frozenset({"misses", "unknown"})


@dataclass(frozen=True, slots=True)
class ConfiguredCache:
    """A cache that the root serves.

    Attributes:
        repository: of the cache; whoever opened it closes it.
        prefix: that names it in URLs; None if nothing does.
        public_keys: required signers of its narinfos; empty for none.
        uploads: how uploads are taken; None if they are not.
    """

    repository: Repository
    prefix: str | None = None
    public_keys: tuple[PublicKey, ...] = ()
    uploads: UploadSettings | None = None


class CacheSet:
    """Finds the cache that a request is for.

    Attributes:
        configured: those that the root serves, in the order in which they are asked.
        counters: of what no cache is the cause of, and of the outcomes of look-ups.
        budget: what the packs of all caches may take.
        on_demand: opens others; None if none may be opened.
    """

    def __init__(
        self,
        configured: Sequence[OpenedCache],
        budget: PackBudget,
        on_demand: OnDemandCaches | None = None,
    ) -> None:
        self.configured = tuple(configured)
        self.counters = Counters()
        self.budget = budget
        self.on_demand = on_demand
        self._at: dict[bytes, OpenedCache] = {}
        for cache in configured:
            self._at |= dict.fromkeys(_keys(cache), cache)
            if len(configured) > 1:
                cache.put_prefix_into_urls()

    @property
    def opened(self) -> tuple[OpenedCache, ...]:
        """All open caches, the configured ones first."""
        return (*self.configured, *(self.on_demand.opened if self.on_demand is not None else ()))

    @property
    def takes_uploads(self) -> bool:
        """Whether any cache does."""
        return any(cache.uploads is not None for cache in self.configured)

    def is_listed(self, hash_part: HashPart) -> bool:
        """Tell whether a cache of the root lists a path."""
        wanted = HashPartBytes(hash_part.encode())
        return any(cache.find(wanted) is not None for cache in self.configured)

    def at(self, prefix: bytes) -> OpenedCache | None:
        """Return the open cache with a prefix, in any case; None if it has to be opened first."""
        spelling = prefix.lower()
        cache = self._at.get(spelling)
        if cache is None and self.on_demand is not None:
            cache = self.on_demand.at(spelling)
        if cache is not None:
            cache.used_at = time.monotonic()
        return cache

    @asynccontextmanager
    async def using(self, prefix: str) -> AsyncIterator[OpenedCache | None]:
        """Keep the cache with a prefix open while the block runs; None if there is none."""
        configured = self._configured_at(prefix)
        if configured is not None or self.on_demand is None:
            yield configured
            return
        async with self.on_demand.using(prefix) as cache:
            yield cache

    def begin(self, prefix: str) -> bool:
        """Start to open the cache with a prefix, if necessary, and tell whether there may be one."""
        if self._configured_at(prefix) is not None:
            return True
        return self.on_demand is not None and self.on_demand.begin(prefix)

    def _configured_at(self, prefix: str) -> OpenedCache | None:
        cache = self._at.get(prefix.lower().encode())
        if cache is None:
            with suppress(FormatError):
                cache = self._at.get(str(parse_prefix(prefix)).encode())
        return cache

    def totals(self) -> Counters:
        """Add up the counters of all caches."""
        counted = [self.counters, *(cache.counters for cache in self.configured)]
        if self.on_demand is not None:
            counted.append(self.on_demand.counters)
        return Counters(
            **{
                name: getattr(self.counters, name)
                if name in _OUTCOMES
                else sum(getattr(each, name) for each in counted)
                for name in (field.name for field in fields(Counters))
            }
        )

    async def close(self) -> None:
        """Cancel all that runs."""
        if self.on_demand is not None:
            await self.on_demand.close()
        for cache in self.configured:
            await cache.close()


def _keys(cache: OpenedCache) -> list[bytes]:
    return [] if cache.prefix is None else [way.encode() for way in spellings(cache.prefix)]

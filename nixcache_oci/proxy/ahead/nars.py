"""Small NARs of upstreams, fetched before a client asks for them; their bytes lie in the packs' memory.

Nix asks for a NAR only when it wants to unpack it, one at a time (2.8) or sixteen: each costs a round trip to
a distant cache. Their narinfos were handed out before, so their bytes can be here by then.

What is served was held to FileHash and FileSize. Whatever goes wrong, the client's own request is answered as
if nothing had been fetched ahead. An upstream that is slow, or asks for fewer requests, is left alone.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.ahead.wanted import UpstreamNar, WantedNars
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.packs.memory import Arrival, PackEntry, PackMemory

_log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 48
"""Requests to one upstream, with clients' own: less is fetched ahead where these are more."""

BESIDE_STREAMS: Final = 24
"""NARs that are fetched ahead from an upstream while a client streams another from it."""

SLOW_SECONDS: Final = 5.0
"""A client that waited so long for a small NAR has a slow line, for which nothing else may compete."""

GIVEN_UP_SECONDS: Final = 60.0
"""A client that waited so long gets the bytes as they arrive, unverified as any stream."""

_QUICK_SECONDS: Final = 1.0
# Each costs half a millisecond, in which nobody is answered.
_BEGUN_PER_TURN: Final = 2


@dataclass(slots=True, eq=False)
class _Held:
    """A NAR that was fetched, or is on its way.

    Attributes:
        nar: what it is.
        entry: in the memory.
        client: that it was fetched ahead of; None if a client had asked for it.
        waiting: clients' requests that wait for it.
    """

    nar: UpstreamNar
    entry: PackEntry
    client: str | None
    waiting: int = 0


class NarsAhead:
    """Fetches from ``upstreams`` into ``memory``; ``clock`` is monotonic."""

    def __init__(
        self,
        upstreams: Upstreams,
        memory: PackMemory,
        counters: Counters,
        *,
        is_on: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstreams = upstreams
        self._memory = memory
        self._counters = counters
        self._is_on = is_on
        self._clock = clock
        self._wanted = WantedNars(clock)
        self._held: dict[str, _Held] = {}  # by URL
        # By upstream: what is on its way, and how much may be.
        self._in_transit: Counter[str] = Counter()
        self._limits: dict[str, int] = {}
        self._pump: asyncio.Handle | None = None

    def handed_out(self, client: str, narinfo: NarInfo) -> None:
        """Note that a client was given a narinfo of an upstream."""
        nar = UpstreamNar.of(narinfo) if self._is_on else None
        if nar is not None and nar.url not in self._held:
            self._wanted.give(client, nar)

    async def nar(self, client: str, url: str) -> bytearray | None:
        """Return a NAR that a client asks for, from memory or once it has arrived.

        None if it is not known to be small, or cannot be had like this: the caller streams it. Raises
        ConnectionError if the proxy stops meanwhile.
        """
        if not self._is_on:
            return None
        known = self._wanted.ask(client, url)
        self._forget_dropped(url)
        held = self._held.get(url)
        if held is None and known is not None and self._memory.evict_for_demand(known.size):
            held = self._begin(known, None)
        self._pump_soon()
        if held is None:
            return None
        self._memory.mark_read(held.entry)
        if held.client is not None:
            self._wanted.note_used(held.client)
            self._counters.upstream_nars_ahead_used += 1
            held.client = None
        held.waiting += 1
        try:
            return await self._wait(held)
        finally:
            held.waiting -= 1

    def sweep(self, _now: float) -> None:
        """Drop what is unused; to be called every few seconds."""
        self._wanted.expire()
        self._memory.drop_unused()
        for url in list(self._held):
            self._forget_dropped(url)
        self._pump_soon()

    async def close(self) -> None:
        """Cancel what is on its way, and begin nothing more."""
        self._is_on = False
        if self._pump is not None:
            self._pump.cancel()
        await cancel_all(held.entry.download for held in self._held.values())

    async def _wait(self, held: _Held) -> bytearray | None:
        download = held.entry.download
        await asyncio.wait([download], timeout=SLOW_SECONDS)
        if not download.done():
            self._make_way(held)
            await asyncio.wait([download], timeout=GIVEN_UP_SECONDS - SLOW_SECONDS)
        if not download.done():
            if held.waiting == 1:
                download.cancel()
            return None
        if not self._is_on:
            raise ConnectionAbortedError("the proxy is stopping")
        if download.cancelled() or download.exception() is not None:
            return None
        return download.result()

    def _make_way(self, waited_for: _Held) -> None:
        """Cancel all that competes with a NAR for a line that is too slow for so many."""
        key = waited_for.nar.key
        self._limits[key] = max(1, self._limits.get(key, MOST_AT_ONCE) // 4)
        for held in self._held.values():
            if held.nar.key == key and not held.waiting:
                held.entry.download.cancel()

    def _pump_soon(self) -> None:
        if self._pump is None and self._is_on:
            self._pump = asyncio.get_running_loop().call_soon(self._begin_some)

    def _begin_some(self) -> None:
        self._pump = None
        begun = 0
        for key in self._wanted.upstreams():
            while self._has_turn(key) and (found := self._wanted.next(key)) is not None:
                if begun == _BEGUN_PER_TURN:
                    self._pump_soon()
                    return
                client, nar = found
                if nar.url in self._held:
                    self._wanted.forget(client, nar.url)
                    continue
                if not (
                    self._memory.has_prefetch_space(nar.size) and self._memory.evict_for_prefetch(nar.size)
                ):
                    return
                self._wanted.take(client, nar)
                self._begin(nar, client)
                begun += 1

    def _has_turn(self, key: str) -> bool:
        load = self._upstreams.load(key)
        if load is None:
            return False
        most = min(self._limits.get(key, MOST_AT_ONCE), MOST_AT_ONCE - load.look_ups - load.streams)
        return self._in_transit[key] < (min(most, BESIDE_STREAMS) if load.streams else most)

    def _begin(self, nar: UpstreamNar, client: str | None) -> _Held:
        download = asyncio.create_task(self._fetch(nar), name=f"upstream nar {nar.digest.hex[:12]}")
        # Not by its digest: an upstream may name one of this cache's.
        place = Digest.of(nar.url.encode())
        entry = PackEntry(place, 0, None, False, 0, download, Arrival(_ignore), self._clock())
        self._memory.add(entry, nar.size)
        self._held[nar.url] = held = _Held(nar, entry, client)
        self._in_transit[nar.key] += 1
        begun_at = self._clock()
        if client is not None:
            self._counters.upstream_nars_fetched_ahead += 1
            self._counters.upstream_bytes_fetched_ahead += nar.size

        def end(_: object) -> None:
            self._in_transit[nar.key] -= 1
            if download.cancelled() or download.exception() is not None:
                self._drop(held)
            elif self._clock() - begun_at < _QUICK_SECONDS and nar.key in self._limits:
                self._limits[nar.key] = min(self._limits[nar.key] + 1, MOST_AT_ONCE)
            self._pump_soon()

        download.add_done_callback(retrieve)
        download.add_done_callback(end)
        return held

    async def _fetch(self, nar: UpstreamNar) -> bytearray:
        content = bytearray(nar.size)
        received = 0
        hasher = hashlib.sha256()
        path, query = nar.path_and_query
        try:
            async with self._upstreams.open_nar(nar.key, path, query, ahead_bytes=nar.size) as stream:
                if stream.head.size not in (None, nar.size):
                    raise UpstreamError(f"{nar.url}: another length than its narinfo says")
                async for chunk in stream.chunks:
                    if received + len(chunk) > nar.size:
                        raise UpstreamError(f"{nar.url}: more bytes than its narinfo says")
                    content[received : received + len(chunk)] = chunk
                    received += len(chunk)
                    hasher.update(chunk)
            if received != nar.size or hasher.hexdigest() != nar.digest.hex:
                raise UpstreamError(f"{nar.url}: not the bytes that its narinfo names")
        except Error as error:
            _log.info("upstream NAR not fetched ahead", extra={"fields": {"error": str(error)}})
            raise
        return content

    def _forget_dropped(self, url: str) -> None:
        held = self._held.get(url)
        if held is not None and held.entry not in self._memory.entries:
            self._drop(held)

    def _drop(self, held: _Held) -> None:
        if self._held.get(held.nar.url) is held:
            del self._held[held.nar.url]
        self._memory.drop(held.entry)
        if held.client is not None:
            self._counters.upstream_nars_ahead_unused += 1
            self._counters.upstream_bytes_ahead_unused += held.nar.size
            held.client = None


async def _ignore(_size: int) -> None:
    """A NAR of a known size needs no more space, and nobody reads it before it is verified."""

"""Narinfos of upstreams, looked up before a client asks: those of the references of what it was given.

Nix asks level by level along References, and each level costs a round trip and what the client itself takes.
Here, an answer's references are looked up at once, and theirs after that. Where a client asks for narinfos
without following references, as ``nix-env -qas`` does, nothing is: the first reference that a client asks for
shows that it walks, and how far ahead it is looked depends on how much of that it asks for.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nixcache_oci.cache.parallel import cancel_all, retrieve
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.errors import UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.lookup import UpstreamFinder

_log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 32
"""Look-ups ahead, of all upstreams."""

MOST_REFERENCES: Final = 1024
"""References of one narinfo that are looked up."""

MOST_WAITING: Final = 4096
"""References that wait to be looked up; further ones are left to clients."""

FIRST_UNREAD: Final = 64
"""Narinfos that are looked up before a client asked for one of them; for each that one asks for, two more."""

_MORE_PER_USED: Final = 2
_WALK_SECONDS: Final = 5.0
# What was looked up, or asked for, is not looked up ahead again so soon.
_MOST_KNOWN: Final = 16_384
_KNOWN_SECONDS: Final = 300.0
# Each takes a third of a millisecond, in which nobody is answered.
_BEGUN_PER_TURN: Final = 2


class NarinfosAhead:
    """Looks up by ``finder`` what ``is_listed`` does not know and no path below ``store_dir`` is.

    ``clock`` is monotonic.
    """

    def __init__(
        self,
        finder: UpstreamFinder,
        is_listed: Callable[[HashPart], bool],
        store_dir: str,
        counters: Counters,
        *,
        is_on: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._finder = finder
        self._is_listed = is_listed
        self._store = Path(store_dir)
        self._counters = counters
        self._is_on = is_on
        self._clock = clock
        # Base names by hash part, and whether the client is this machine.
        self._waiting: OrderedDict[HashPart, tuple[str, bool]] = OrderedDict()
        self._known: BoundedCache[HashPart, float] = BoundedCache(_MOST_KNOWN)
        self._unread: BoundedCache[HashPart, None] = BoundedCache(_MOST_KNOWN)
        self._used = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._walks_until = 0.0
        self._pump: asyncio.Handle | None = None

    def asked(self, hash_part: HashPart) -> None:
        """Note that a client asks for a narinfo that is not of this cache."""
        if not self._is_on:
            return
        now = self._clock()
        if now >= self._walks_until:
            self._unread = BoundedCache(_MOST_KNOWN)
            self._used = 0
        is_reference = self._waiting.pop(hash_part, None) is not None
        if hash_part in self._unread:
            is_reference = True
            self._unread.forget(hash_part)
            self._used += 1
            self._counters.upstream_narinfos_ahead_used += 1
        self._known.put(hash_part, now)
        if is_reference:
            self._walks_until = now + _WALK_SECONDS
            self._pump_soon()

    def given(self, narinfo: NarInfo, *, is_here: bool) -> None:
        """Note that an upstream gave a narinfo; ``is_here`` if to a client on this machine."""
        if not self._is_on:
            return
        now = self._clock()
        for base_name in narinfo.references[:MOST_REFERENCES]:
            hash_part = HashPart.of(base_name)
            since = self._known.get(hash_part)
            if len(self._waiting) < MOST_WAITING and (since is None or now - since > _KNOWN_SECONDS):
                self._waiting.setdefault(hash_part, (base_name, is_here))
        self._pump_soon()

    def sweep(self, _now: float) -> None:
        """Forget what nobody walks to any more; to be called every few seconds."""
        if self._clock() >= self._walks_until:
            self._waiting.clear()

    async def close(self) -> None:
        """Cancel what is under way, and begin nothing more."""
        self._is_on = False
        if self._pump is not None:
            self._pump.cancel()
        await cancel_all(self._under_way)

    def _pump_soon(self) -> None:
        if self._pump is None and self._is_on and self._may_begin():
            self._pump = asyncio.get_running_loop().call_soon(self._begin_some)

    def _may_begin(self) -> bool:
        return bool(
            self._waiting
            and self._clock() < self._walks_until
            and len(self._under_way) < MOST_AT_ONCE
            and len(self._unread) < FIRST_UNREAD + _MORE_PER_USED * self._used
        )

    def _begin_some(self) -> None:
        self._pump = None
        begun = 0
        while begun < _BEGUN_PER_TURN and self._may_begin():
            hash_part, (base_name, is_here) = self._waiting.popitem(last=False)
            begun += 1
            self._known.put(hash_part, self._clock())
            if self._is_listed(hash_part) or (is_here and os.path.lexists(self._store / base_name)):
                continue
            self._unread.put(hash_part, None)
            self._counters.upstream_narinfos_fetched_ahead += 1
            task = asyncio.create_task(self._look_up(hash_part, is_here=is_here), name=f"ahead {hash_part}")
            self._under_way.add(task)
            task.add_done_callback(self._end)
        self._pump_soon()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        retrieve(task)
        self._pump_soon()

    async def _look_up(self, hash_part: HashPart, *, is_here: bool) -> None:
        try:
            found = await self._finder.find_ahead(hash_part)
        except UpstreamError as error:
            _log.debug("not looked up ahead", extra={"fields": {"error": str(error)}})
            return
        if found is not None:
            self.given(found, is_here=is_here)

"""Batches: when they are published, and what becomes of one that fails."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from nixcache_oci.errors import RegistryError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.uploads.batches import BATCH_BYTES, BATCH_SECONDS, Batches
from nixcache_oci.proxy.uploads.sent_before import SentBefore
from nixcache_oci.proxy.uploads.spool import Spool
from tests.proxy.uploads.test_spool import _take
from tests.support.objects import store_object
from tests.support.uploads import Sent

if TYPE_CHECKING:
    from nixcache_oci.cache.catalog import Catalog


class _Cache:
    """A cache that lists what was published, and its index."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._listed: dict[HashPart, bytes] = {}
        self.catalog: Catalog | None = cast("Catalog", self)
        self.error: Exception | None = None
        self.poison: dict[HashPart, str] = {}
        self.batches: list[int] = []

    def find(self, part: HashPart) -> bytes | None:
        return self._listed.get(part)

    def is_kept(self, part: HashPart) -> bool:
        return part in self._listed

    async def refresh(self, *, thoroughly: bool) -> None:
        assert thoroughly

    async def publish(self, _cache: object, parts: Sequence[HashPart], _has: bool) -> Mapping[HashPart, str]:
        self.batches.append(len(parts))
        if self.error is not None:
            raise self.error
        self._listed |= {part: self._spool.paths[part].text for part in parts if part not in self.poison}
        return {part: why for part, why in self.poison.items() if part in parts}


def _batches(spool: Spool, cache: _Cache, clock: list[float]) -> Batches:
    return Batches(spool, SentBefore(spool.folder), cache, cache.publish, 5.0, clock=lambda: clock[0])


async def _add(spool: Spool, batches: Batches, seed: str, size: int = 1) -> HashPart:
    sent = Sent.of(store_object(seed))
    await spool.add_path(sent.narinfo, await _take(spool, sent))
    batches.note(size)
    return sent.narinfo.store_path.hash_part


async def test_when_a_batch_is_due(tmp_path: Path) -> None:
    """After quiet; while more comes, after a minute, or at its size."""
    async with Spool.opened(tmp_path, 10**6) as spool:
        clock = [100.0]
        batches = _batches(spool, _Cache(spool), clock)
        assert batches._pause() > BATCH_SECONDS
        await _add(spool, batches, "first")
        assert batches._pause() == 5.0
        for _ in range(20):
            clock[0] += 4
            batches.note(1)
        assert batches._pause() <= 0
        fresh = _batches(spool, _Cache(spool), clock)
        fresh.note(BATCH_BYTES)
        assert fresh._pause() == 0


async def test_a_batch_that_fails_stays_and_is_tried_again(tmp_path: Path) -> None:
    """With growing pauses, which new uploads do not shorten; then all of it is published at once."""
    async with Spool.opened(tmp_path, 10**6) as spool:
        clock = [100.0]
        cache = _Cache(spool)
        batches = _batches(spool, cache, clock)
        cache.error = RegistryError("the registry is down")
        await _add(spool, batches, "first")
        pauses = []
        for number in range(12):
            await batches._publish_all()
            await _add(spool, batches, f"more-{number}")
            pauses.append(batches._pause())
            assert batches.error == "the registry is down"
        assert pauses == [5.0, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 900.0, 900.0, 900.0]
        cache.error = None
        await batches._publish_all()
        assert (batches.error, dict(spool.paths), batches.published) == (None, {}, 13)


async def test_one_that_cannot_be_published_keeps_no_other(tmp_path: Path) -> None:
    """It stays, is named, and is tried again later."""
    async with Spool.opened(tmp_path, 10**6) as spool:
        cache = _Cache(spool)
        batches = _batches(spool, cache, [100.0])
        bad = await _add(spool, batches, "bad")
        await _add(spool, batches, "good")
        cache.poison = {bad: "gc took what it refers to"}
        await batches._publish_all()
        assert list(spool.paths) == [bad]
        assert batches.failed == cache.poison
        assert batches._pause() == 2.0
        cache.poison = {}
        await batches._publish_all()
        assert (dict(spool.paths), batches.failed) == ({}, {})


async def test_a_path_stays_until_the_index_has_it(tmp_path: Path) -> None:
    """Else a reader would find it nowhere for a while."""
    async with Spool.opened(tmp_path, 10**6) as spool:
        cache = _Cache(spool)
        batches = _batches(spool, cache, [100.0])
        part = await _add(spool, batches, "one")
        cache.catalog = None
        await batches._publish_all()
        assert list(spool.paths) == [part]
        assert "not seen" in batches.failed[part]


async def test_what_comes_wakes_it(tmp_path: Path) -> None:
    """Nothing is asked of the registry while nothing comes."""
    async with Spool.opened(tmp_path, 10**6) as spool:
        cache = _Cache(spool)
        batches = Batches(spool, SentBefore(spool.folder), cache, cache.publish, 0.0)
        running = asyncio.create_task(batches.run())
        await asyncio.sleep(0)
        assert cache.batches == []
        await _add(spool, batches, "one")
        async with asyncio.timeout(30):
            while spool.paths:  # noqa: ASYNC110  # its end is no event
                await asyncio.sleep(0.005)
        assert cache.batches == [1]
        running.cancel()


async def test_a_full_disk_keeps_nothing_that_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would stay full: what is saved on the way needs space, too."""

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SentBefore, "save", fail)
    async with Spool.opened(tmp_path, 10**6) as spool:
        cache = _Cache(spool)
        batches = _batches(spool, cache, [0.0])
        await _add(spool, batches, "one")
        await batches._publish_all()
        assert (batches.error, len(spool.paths), spool.used_bytes) == (None, 0, 0)

import asyncio
import threading
from pathlib import Path
from typing import Self

import pytest

from nixcache_oci.nix.nar import File
from nixcache_oci.publisher import nar_upload
from nixcache_oci.publisher.nar_upload import Budget
from tests.publisher.upload_story import Story, WatchedStage, noise, small_ones
from tests.support.process import until

MIB = 1024 * 1024


@pytest.fixture
async def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def nothing(_: object) -> None:
    """No hook."""


class PeakWatch:
    """Looks at a folder all the time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            size = 0
            for file in self._folder.iterdir():
                try:
                    size += file.stat().st_size
                except FileNotFoundError:
                    continue
            self.peak_bytes = max(self.peak_bytes, size)


async def test_staged_bytes_are_bounded(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files of 40 MB, room for one: whatever the closure's size, the disk is safe."""
    monkeypatch.setattr(nar_upload, "STAGED_BYTES", 50 * MIB)
    infos = [story.store.add(f"large-{number}", noise(str(number), 40_000_000)) for number in range(3)]
    story.blobs.gate.clear()
    with PeakWatch(story.staging) as watch:
        async with story.tidy():
            running = story.start(infos, jobs=4)
            await until(lambda: story.blobs.steps)
            for _ in range(20):  # the others had time enough to be staged, too
                await asyncio.sleep(0.01)
            story.blobs.gate.set()
            uploaded = await running
    assert len(uploaded.blobs) == len(infos)
    assert 40_000_000 < watch.peak_bytes < 41_000_000


async def test_what_is_larger_than_all_room_goes_alone(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be published, too; nothing else is staged in a file beside it."""
    monkeypatch.setattr(nar_upload, "STAGED_BYTES", 12 * MIB)
    sizes = (5, 13, 5, 14, 5, 5)
    infos = [
        story.store.add(f"large-{number}", noise(str(number), size * MIB))
        for number, size in enumerate(sizes)
    ]
    with PeakWatch(story.staging) as watch:
        uploaded = await story.run(infos)
    story.check(uploaded, infos)
    assert watch.peak_bytes < 14.1 * MIB


async def test_what_shrinks_keeps_its_room_until_it_is_packed(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their turn comes behind the small ones, in their order: until then one of twelve has room here."""
    size = 80_000
    monkeypatch.setattr(nar_upload, "STAGED_BYTES", 2 * size)
    sparse = [
        story.store.add(f"sparse-{number}", File(noise(str(number), size).contents + bytes(5 * MIB)))
        for number in range(12)
    ]
    small = small_ones(story, 1)
    held = threading.Event()
    watched = WatchedStage(monkeypatch, lambda info: info in small and held.wait(30))
    async with story.tidy():
        running = story.start([*sparse, *small], jobs=4)
        await until(lambda: story.told.staged)
        await asyncio.sleep(0.1)
        assert len(watched.started) == 2
        held.set()
        uploaded = await running
    story.check(uploaded, [*sparse, *small])
    assert len(uploaded.blobs) == 1


async def test_memory_is_bounded(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the registry is slow, nothing is staged that would have to wait in memory without end."""
    monkeypatch.setattr(nar_upload, "_MEMORY_BYTES", 3 * MIB)
    infos = [story.store.add(f"middle-{number}", noise(str(number), 300_000)) for number in range(50)]
    watched = WatchedStage(monkeypatch, nothing)
    story.blobs.gate.clear()
    async with story.tidy():
        running = story.start(infos, jobs=8)
        await until(lambda: len(watched.started) == 10)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert len(watched.started) == 10
        story.blobs.gate.set()
        uploaded = await running
    story.check(uploaded, infos)


async def test_packs_wait_for_their_turn(story: Story) -> None:
    """Full packs are not piled up in memory either: so many are sent at once, one waits, one is filled."""
    infos = small_ones(story, 64 * 8, 250_000)
    story.blobs.gate.clear()
    async with story.tidy():
        running = story.start(infos, jobs=4)
        await until(lambda: len(story.blobs.steps) == nar_upload._UPLOADS_AT_ONCE)
        staged = -1
        while staged != story.told.staged:
            staged = story.told.staged
            await asyncio.sleep(0.3)
        assert len(infos) * 250_000 > 7 * 16 * MIB
        assert staged * 250_000 < 6 * 16 * MIB
        story.blobs.gate.set()
        uploaded = await running
    story.check(uploaded, infos)


async def test_few_large_ones_are_compressed_at_once(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes several threads and their memory; the small ones go on beside them."""
    large = [story.store.add(f"large-{number}", File(bytes(4 * MIB + number))) for number in range(6)]
    small = small_ones(story, 20)
    held = threading.Event()
    watched = WatchedStage(monkeypatch, lambda info: info in large and held.wait(30))
    async with story.tidy():
        running = story.start([*large, *small], jobs=4)
        await until(lambda: story.told.staged == len(small))
        assert watched.running == nar_upload._LARGE_AT_ONCE
        held.set()
        uploaded = await running
    story.check(uploaded, [*large, *small])


async def test_no_more_threads_than_jobs(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for one job leaves the machine to others."""
    infos = [*small_ones(story, 20), story.store.add("large", File(bytes(5 * MIB)))]
    watched = WatchedStage(monkeypatch, nothing)
    await story.run(infos, jobs=1)
    assert watched.peak == 1


# The room itself


async def test_room_is_shared_out_and_given_back() -> None:
    """What is free is had at once, and what is not is waited for."""
    room = Budget(10)
    assert await room.take(4) == 4
    assert await room.take(6) == 6
    waiting = asyncio.create_task(room.take(3))
    await settle()
    assert not waiting.done()
    await room.give_back(2)
    await settle()
    assert not waiting.done()
    await room.give_back(2)
    assert await waiting == 3


async def test_a_wish_for_more_than_all_waits_for_all() -> None:
    """It gets everything, and everything only."""
    room = Budget(10)
    await room.take(1)
    waiting = asyncio.create_task(room.take(1000))
    await settle()
    assert not waiting.done()
    await room.give_back(1)
    assert await waiting == 10
    behind = asyncio.create_task(room.take(1))
    await settle()
    assert not behind.done()
    await room.give_back(10)
    assert await behind == 1


async def test_a_large_wish_is_not_starved() -> None:
    """Small ones that come later do not take what it waits for."""
    room = Budget(10)
    await room.take(5)
    large = asyncio.create_task(room.take(10))
    await settle()
    small = [asyncio.create_task(room.take(1)) for _ in range(5)]
    await settle()
    assert not any(task.done() for task in small)
    await room.give_back(5)
    await settle()
    assert large.done()
    assert not any(task.done() for task in small)
    await room.give_back(10)
    assert await asyncio.gather(*small) == [1] * 5


async def test_who_gives_up_waiting_is_passed_over() -> None:
    """Nobody waits behind one that is gone, and nothing of the room is lost."""
    room = Budget(10)
    await room.take(5)
    first, second, third = (asyncio.create_task(room.take(size)) for size in (10, 8, 5))
    await settle()
    first.cancel()
    second.cancel()
    await settle()
    assert first.cancelled()
    assert second.cancelled()
    assert await third == 5
    await room.give_back(10)
    assert await room.take(10) == 10


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_nothing_that_is_sent_is_over_the_registrys_limit(story: Story) -> None:
    """Packs keep to it as NARs do; a NAR that is larger by itself is named, and the others are sent."""
    limit = 300_000
    infos = [*small_ones(story, 40, 50_000), story.store.add("larger", noise("larger", limit + 1))]
    uploaded = await story.run(infos, max_blob_bytes=limit)
    assert list(uploaded.failed) == [infos[-1].store_path.base_name]
    assert len(uploaded.narinfos) == len(infos) - 1
    assert max(map(len, story.blobs.blobs.values())) <= limit

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.nix.nar import File
from nixcache_oci.publisher import nar_upload
from nixcache_oci.publisher.staging import StagingFolderError
from tests.publisher.upload_story import Story, WatchedStage, noise, small_ones
from tests.support.process import until

MIB = 1024 * 1024


@pytest.fixture
async def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def mixed(story: Story, *, size: int = 1000) -> list[PathInfo]:
    """More than queues hold, and with 250 KB each more than a pack holds; and some of every kind."""
    return [
        *small_ones(story, 90, size),
        *(story.store.add(f"middle-{number}", noise(f"m{number}", 300_000)) for number in range(4)),
        *(story.store.add(f"large-{number}", noise(f"l{number}", 4 * MIB)) for number in range(3)),
        *(story.store.add(f"sparse-{number}", File(bytes(5 * MIB + number))) for number in range(2)),
    ]


def damage(story: Story, info: PathInfo) -> None:
    path = story.store.real_path(info)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


# One object


async def test_one_that_fails_does_not_stop_the_others(story: Story) -> None:
    """Whatever its kind: it is named with the reason, and its bytes are nowhere."""
    infos = mixed(story)
    bad = [infos[0], infos[50], infos[89], infos[91], infos[95], infos[98]]
    for info in bad:
        damage(story, info)
    uploaded = await story.run(infos)
    story.check(uploaded, [info for info in infos if info not in bad])
    assert set(uploaded.failed) == {info.store_path.base_name for info in bad}
    assert sorted(story.told.warnings) == sorted(uploaded.failed.values())
    assert story.told.staged == len(infos) - len(bad)
    for info in bad:
        assert uploaded.failed[info.store_path.base_name].startswith(f"{info.store_path}: ")


async def test_all_may_fail(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room and turns are given back by those that fail, too."""
    monkeypatch.setattr(nar_upload, "_MEMORY_BYTES", MIB)
    monkeypatch.setattr(nar_upload, "STAGED_BYTES", 6 * MIB)
    infos = mixed(story)
    for info in infos:
        story.store.real_path(info).unlink()
    uploaded = await story.run(infos)
    assert (len(uploaded.failed), uploaded.narinfos, uploaded.blobs) == (len(infos), [], {})
    assert story.blobs.steps == []


async def test_what_is_over_the_limit_fails_alone(story: Story) -> None:
    """The registry would refuse it in the end: no byte of it is sent."""
    infos = mixed(story)
    uploaded = await story.run(infos, max_blob_bytes=2 * MIB)
    assert set(uploaded.failed) == {info.store_path.base_name for info in infos[94:97]}
    assert len(uploaded.narinfos) == len(infos) - 3


# The end of all


@pytest.mark.parametrize("error_type", [RegistryError, ValueError], ids=["refusal", "mistake"])
@pytest.mark.parametrize("at_once", [1, 100])
@pytest.mark.parametrize("skip", [0, 3, 8])
async def test_an_error_of_the_registry_ends_all(
    story: Story, skip: int, at_once: int, error_type: type[Exception]
) -> None:
    """As itself, and soon, though queues are full; what was sent is not sent again by the next run."""
    infos = mixed(story, size=250_000)
    left = [skip, at_once]

    async def refuse(step: str) -> None:
        if not step.startswith("push"):
            return
        left[0] -= 1
        if left[0] < 0 < left[1]:
            left[1] -= 1
            raise error_type(f"no room for {step}")

    story.blobs.hook = refuse
    with pytest.raises(error_type, match="no room for push"):
        await story.run(infos)
    story.blobs.hook = None
    before = set(story.blobs.blobs)
    story.blobs.steps.clear()
    story.check(await story.run(infos), infos)
    assert len(story.blobs.pushed) == len(story.blobs.blobs) - len(before)


async def test_a_look_that_fails_is_not_taken_for_absence(story: Story) -> None:
    """Only a registry that says so has no such blob: else nothing would be known of what it holds."""

    async def refuse(step: str) -> None:
        if step.startswith("stat"):
            raise RegistryError("401")

    story.blobs.hook = refuse
    with pytest.raises(RegistryError, match="401") as error:
        await story.run(mixed(story))
    assert not isinstance(error.value, NotFoundError)
    assert story.blobs.pushed == []


async def test_a_folder_that_is_gone_ends_all(story: Story) -> None:
    """Nothing large can be staged any more: the rest is not tried one by one."""
    infos = [story.store.add(f"large-{number}", noise(str(number), 4 * MIB)) for number in range(20)]
    story.staging.rmdir()
    story.staging.write_text("not a folder")
    try:
        with pytest.raises(StagingFolderError, match="set TMPDIR"):
            await story.start(infos)
    finally:
        story.staging.unlink()
        story.staging.mkdir()
    assert story.blobs.steps == []


# Giving up


async def give_up(story: Story, running: "asyncio.Task[object]") -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not list(story.staging.iterdir())


@pytest.mark.parametrize("number", [*range(6), 8, 12])
@pytest.mark.parametrize("jobs", [1, 4])
async def test_cancelled_in_any_request(story: Story, number: int, jobs: int) -> None:
    """Ctrl-C: no thread, no file, no complaint of an error that nobody looked at; the next run goes on."""
    infos = mixed(story)
    damage(story, infos[3])
    reached = asyncio.Event()

    async def hold(_step: str) -> None:
        if len(story.blobs.steps) > number:
            reached.set()
            await asyncio.Event().wait()

    story.blobs.hook = hold
    async with story.tidy():
        running = story.start(infos, jobs=jobs)
        await reached.wait()
        await give_up(story, running)
    story.blobs.hook = None
    good = [info for info in infos if info is not infos[3]]
    story.check(await story.run(infos), good)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 50])
async def test_cancelled_at_any_turn(story: Story, turns: int) -> None:
    """Also before the first thread has begun, and before the first task has."""
    infos = mixed(story)
    async with story.tidy():
        running = story.start(infos)
        for _ in range(turns):
            await asyncio.sleep(0)
        await give_up(story, running)


async def test_cancelled_while_threads_fail(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """They find out what is wrong just when nobody wants to know any more, with a full queue before them."""
    infos = small_ones(story, 40)
    for info in infos:
        damage(story, info)
    held = threading.Event()
    watched = WatchedStage(monkeypatch, lambda _: held.wait(30))
    async with story.tidy():
        running = story.start(infos, jobs=2)
        await until(lambda: watched.running == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(held.set)
        await give_up(story, running)


async def test_an_endless_one_is_given_up(story: Story) -> None:
    """A thread in the middle of something huge is told, and stops; its file goes."""
    info = story.store.add("huge", File(b""))
    os.truncate(story.store.real_path(info), 2**40)
    async with story.tidy():
        running = story.start([replace(info, nar_size=2**41)])
        await until(lambda: list(story.staging.iterdir()))
        await give_up(story, running)


async def test_staged_and_cancelled_at_the_same_time(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is finished when nobody waits for it any more is removed all the same."""
    infos = [story.store.add("large", noise("large", 4 * MIB))]
    held = threading.Event()
    watched = WatchedStage(monkeypatch, lambda _: held.wait(30))
    async with story.tidy():
        running = story.start(infos)
        await until(lambda: watched.running)
        held.set()
        while watched.running:  # without a turn of the event loop
            pass
        assert list(story.staging.iterdir())
        await give_up(story, running)


async def test_an_error_and_a_cancellation_at_once(story: Story) -> None:
    """Either is told; nothing hangs, and nothing is left."""
    infos = mixed(story)
    reached = asyncio.Event()

    async def refuse(step: str) -> None:
        if step.startswith("push"):
            reached.set()
            await asyncio.sleep(0)
            raise RegistryError("refused")

    story.blobs.hook = refuse
    async with story.tidy():
        running = story.start(infos)
        await reached.wait()
        running.cancel()
        with pytest.raises((asyncio.CancelledError, RegistryError)):
            await running

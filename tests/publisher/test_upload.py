import asyncio
import random
import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path

import pytest

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, NarUrl
from nixcache_oci.cache.pack import FIRST_PACK_BYTES
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nar import File
from nixcache_oci.oci import media_type
from nixcache_oci.publisher.nar_upload import Uploaded
from tests.publisher.upload_story import Story, WatchedStage, noise, small_ones
from tests.support.process import until
from tests.support.registries import Ghcr

MIB = 1024 * 1024


@pytest.fixture
async def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def every_kind(story: Story) -> list[PathInfo]:
    """Packed ones, blobs out of memory and out of files, and large ones that shrink: mixed."""
    infos: list[PathInfo] = []
    for number in range(4):
        last = [infos[-1].store_path.name] if infos else []
        infos += [
            story.store.add(f"packed-{number}", noise(f"p{number}", 5000), references=last),
            story.store.add(f"middle-{number}", noise(f"m{number}", 300_000)),
            story.store.add(f"large-{number}", noise(f"l{number}", 4 * MIB + number)),
            story.store.add(f"sparse-{number}", File(bytes(5 * MIB + number))),
        ]
    return infos


def kinds(uploaded: Uploaded) -> list[str]:
    return sorted(descriptor.media_type for descriptor in uploaded.blobs.values())


async def test_everything_is_found_where_its_narinfo_says(story: Story) -> None:
    """Small ones lie in a pack, the others in blobs of their own; what shrinks to a few bytes is small."""
    infos = every_kind(story)
    uploaded = await story.run(infos)
    story.check(uploaded, infos)
    assert kinds(uploaded) == [*[media_type.NAR_ZSTD] * 8, media_type.PACK]
    packed = [one for one in uploaded.narinfos if NarUrl.parse(one.url).offset is not None]
    assert {narinfo.store_path.name.partition("-")[0] for narinfo in packed} == {"packed", "sparse"}
    [stage] = story.told.stages
    size = sum(info.nar_size for info in infos)
    assert (stage.done, stage.size_done) == (stage.count, stage.size) == (len(infos), size)
    assert story.told.sent_bytes == sum(len(content) for content in story.blobs.blobs.values())
    assert (story.told.warnings, uploaded.failed) == ([], {})


async def test_nothing_to_send_is_no_request(story: Story) -> None:
    """A publish that finds everything listed asks for nothing."""
    assert await story.run([]) == Uploaded()
    assert story.blobs.steps == []


@pytest.mark.parametrize("jobs", [1, 2, 8])
async def test_every_run_makes_the_same_blobs(
    story: Story, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However threads and uploads take turns: who was killed finds what it sent, and sends it no more."""
    infos = every_kind(story)
    first = await story.run(infos)
    pushed = len(story.blobs.pushed)
    delays = random.Random(jobs)

    async def dawdle(_step: str) -> None:
        await asyncio.sleep(delays.random() / 50)

    story.blobs.hook = dawdle
    WatchedStage(monkeypatch, lambda _: time.sleep(delays.random() / 50))
    again = await story.run(infos, jobs=jobs)
    assert again.narinfos == first.narinfos
    assert again.blobs == first.blobs
    assert len(story.blobs.pushed) == pushed
    assert (story.told.staged, story.told.sent_bytes) == (len(infos), 0)


async def test_packs_keep_the_closures_order(story: Story) -> None:
    """What is fetched together lies together: pack after pack, and slice after slice, in the order given.

    The first packs are small, so that they come at once, and early.
    """
    infos = small_ones(story, 90, 250_000)
    uploaded = await story.run(infos)
    story.check(uploaded, infos)
    places = [NarUrl.parse(narinfo.url) for narinfo in uploaded.narinfos]
    packs = list(dict.fromkeys(place.blob for place in places))
    sizes = [uploaded.blobs[pack].size for pack in packs]
    limits = [FIRST_PACK_BYTES << number for number in range(5)]
    assert all(limit - 250_000 < size <= limit for size, limit in list(zip(sizes, limits, strict=True))[:-1])
    assert places == sorted(places, key=lambda place: (packs.index(place.blob), place.offset))
    assert all(descriptor.size <= MAX_PACK_BYTES for descriptor in uploaded.blobs.values())


async def test_the_same_content_is_sent_once(story: Story) -> None:
    """Two paths may hold the same bytes, and both are on their way at the same time."""
    infos = [
        *(story.store.add(f"large-{number}", noise("large", 5 * MIB)) for number in range(3)),
        *(story.store.add(f"middle-{number}", noise("middle", MIB)) for number in range(3)),
    ]
    story.blobs.gate.clear()
    async with story.tidy():
        running = story.start(infos, jobs=4)
        await until(lambda: story.told.staged == len(infos))
        story.blobs.gate.set()
        uploaded = await running
    story.check(uploaded, infos)
    assert len(story.blobs.steps) == 2 * 2
    assert len(uploaded.blobs) == 2


async def test_a_folder_is_a_repository_too(tmp_path: Path) -> None:
    """The embedded cache takes files and bytes, and finds them at the next run."""
    layout = Layout(tmp_path / "layout")
    story = Story(tmp_path, layout)
    infos = every_kind(story)
    uploaded = await story.run(infos)
    sizes = {blob: await layout.stat_blob(blob) for blob in uploaded.blobs}
    assert sizes == {blob: descriptor.size for blob, descriptor in uploaded.blobs.items()}
    assert await story.run(infos) == uploaded
    assert story.told.sent_bytes == 0
    await layout.close()


def asked(ghcr: Ghcr) -> Counter[str]:
    """Requests by operation, but for tokens, and for those that came before the first token."""
    requests = [record for record in ghcr.server.requests if record.status != HTTPStatus.UNAUTHORIZED]
    return Counter(record.operation for record in requests if record.operation != "token")


async def test_requests_at_a_registry(ghcr: Ghcr, tmp_path: Path) -> None:
    """One look at a blob; three requests for one that is not there; of one that is, one byte is read."""
    client = ghcr.client()
    try:
        story = Story(tmp_path, client)
        infos = every_kind(story)
        uploaded = await story.run(infos)
        blobs = len(uploaded.blobs)
        assert asked(ghcr) == {"blob-get": blobs, "upload-post": blobs, "upload-put": blobs}
        ghcr.server.reset_requests()
        assert await story.run(infos) == uploaded
        # The storage, which the registry sends us to, gives the byte.
        assert asked(ghcr) == {"blob-get": blobs, "storage-get": blobs}
    finally:
        await client.close()


async def test_what_will_be_sent_is_told_while_it_is_sent(story: Story) -> None:
    """Whoever lists it need not wait; it is what the run gives in the end."""
    infos = [*small_ones(story, 5), story.store.add("blob", noise("blob", 300_000))]
    infos += [story.store.add("same", noise("0", 1000))]
    told: list[Uploaded] = []

    async def tell(staged: Uploaded) -> None:
        assert not story.blobs.blobs
        told.append(staged)
        story.blobs.gate.set()

    story.blobs.gate.clear()
    async with story.tidy(), asyncio.timeout(60):
        uploaded = await story.start(infos, when_staged=tell)
    assert told == [uploaded]
    story.check(uploaded, infos)


async def test_who_is_told_may_refuse(story: Story) -> None:
    """The run ends with that error."""

    async def refuse(_staged: Uploaded) -> None:
        raise FormatError("no")

    infos = every_kind(story)
    async with story.tidy():
        with pytest.raises(FormatError, match="no"):
            await story.start(infos, when_staged=refuse)

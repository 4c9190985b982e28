"""The live index: refreshed behind requests, and never worse than it was."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache import parallel
from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.proxy import live_index
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from tests.support.objects import hash_part_of, store_object
from tests.support.process import until
from tests.support.publish import CREATED, publish, publish_version1
from tests.support.registries import REPO, Ghcr

NAME = f"{REPO}/nix-cache"


class Story:
    """A registry, a publisher, and proxies that share one folder, as one that is started again does."""

    def __init__(self, ghcr: Ghcr, folder: Path) -> None:
        self.ghcr = ghcr.server
        self.client = ghcr.client()
        self._registry = ghcr
        self._folder = folder / "index"
        self._clients = [self.client]

    def make_index(self) -> LiveIndex:
        client = self._registry.client()
        self._clients.append(client)
        return LiveIndex(client, IndexFolder(self._folder, client.name), (), 300, Counters())

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@pytest.fixture
async def story(ghcr: Ghcr, tmp_path: Path) -> AsyncIterator[Story]:
    story = Story(ghcr, tmp_path)
    yield story
    await story.close()


def has(index: LiveIndex, seed: str) -> bool:
    assert index.catalog is not None
    return index.catalog.find(hash_part_of(seed)) is not None


async def write_index(client: Registry, segments: list[Segment], *, condemned: bool = False) -> None:
    """Overwrite the index with these segments alone; the watermark makes their tags count no more."""
    if condemned:
        mark = {media_type.ANNOTATION_CONDEMNED: format_time(CREATED)}
        marked = [
            replace(one.descriptor, annotations={**one.descriptor.annotations, **mark}) for one in segments
        ]
        segments = [Segment.from_descriptor(descriptor) for descriptor in marked]
    index = CacheIndex(tuple(segments), watermark=CREATED + timedelta(days=1))
    await client.push_manifest("cache-index", index.render(), media_type.IMAGE_INDEX)


def raising(error: Exception) -> Callable[..., object]:
    """Make a method that fails."""

    def fail(*_arguments: object) -> object:
        raise error

    return fail


async def test_an_empty_repository_is_an_empty_cache(story: Story) -> None:
    """No index and no tags, said by the registry itself: every look-up is a miss, and none unknown."""
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert index.entries == 0
    assert index.catalog is not None


async def test_nothing_new_costs_one_request(story: Story) -> None:
    """A reader polls with HEAD."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    story.ghcr.reset_requests()
    await index.refresh(thoroughly=False)
    assert [record.operation for record in story.ghcr.requests] == ["manifest-head"]


async def test_what_is_new_is_all_that_is_fetched(story: Story) -> None:
    """A publish adds a table; those that are here already are not fetched again."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    await publish(story.client, [store_object("two")], created=CREATED + timedelta(hours=1))
    story.ghcr.reset_requests()
    await index.refresh(thoroughly=False)
    assert story.ghcr.count("blob-get") == 1
    assert has(index, "one")
    assert has(index, "two")


async def test_a_segment_that_no_index_lists_is_found_by_its_tag(story: Story) -> None:
    """Another writer's stale index overwrote the one that listed it: nothing is lost."""
    await publish(story.client, [store_object("listed")])
    await publish(
        story.client, [store_object("overwritten")], created=CREATED + timedelta(hours=1), is_listed=False
    )
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "listed")
    assert has(index, "overwritten")


async def test_what_was_merged_is_not_missing(story: Story) -> None:
    """Its paths come from the merged segment, whose table is all that is fetched; it is no older state."""
    parts = [await publish(story.client, [store_object(seed)]) for seed in ("one", "two")]
    index = story.make_index()
    await index.refresh(thoroughly=True)
    table = Table(
        TableHeader(CREATED + timedelta(hours=1)),
        narinfos=tuple(store_object(seed).narinfo for seed in ("one", "two")),
    )
    merges = [segment.manifest for segment in parts]
    await list_segments(story.client, [await push_segment(story.client, table, [], merges=merges)])
    story.ghcr.reset_requests()
    await index.refresh(thoroughly=False)
    assert story.ghcr.count("blob-get") == 1
    assert (index.segments, has(index, "one"), has(index, "two")) == (1, True, True)
    assert index.watch.seen.regressed_since is None


async def test_a_damaged_table_takes_nothing_else_with_it(story: Story) -> None:
    """Its blob is gone and its manifest is there: damage, which is shown; the rest is served."""
    segment = await publish(story.client, [store_object("lost")])
    await publish(story.client, [store_object("kept")], created=CREATED + timedelta(hours=1))
    story.ghcr.delete_blob(NAME, segment.table)
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "kept")
    assert not has(index, "lost")
    assert list(index.state.damaged) == [str(segment.tag)]


async def test_the_last_copy_of_a_damaged_table_is_kept(story: Story) -> None:
    """What lies on this disk is still right, for it has its digest."""
    segment = await publish(story.client, [store_object("lost")])
    first = story.make_index()
    await first.refresh(thoroughly=True)
    story.ghcr.delete_blob(NAME, segment.table)
    second = story.make_index()
    await second.refresh(thoroughly=True)
    assert has(second, "lost")


async def test_a_segment_that_was_collected_is_dropped(story: Story) -> None:
    """Table and manifest are both gone: gc was faster, and that is no damage."""
    segment = await publish(story.client, [store_object("collected")])
    await publish(story.client, [store_object("kept")], created=CREATED + timedelta(hours=1))
    story.ghcr.delete_manifest(NAME, str(segment.manifest))
    story.ghcr.delete_blob(NAME, segment.table)
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "kept")
    assert not has(index, "collected")
    assert not index.state.damaged


async def test_a_table_with_a_flipped_byte_is_not_used(story: Story) -> None:
    """Tables are checked against their digest before use."""
    segment = await publish(story.client, [store_object("one")])
    story.ghcr.corrupt_blob(segment.table, 20)
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert not has(index, "one")
    assert index.state.damaged


async def test_an_index_that_is_none_of_ours_is_an_error(story: Story) -> None:
    """A container image under our tag is not an empty cache."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    await story.client.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
    image = Manifest(artifact_type=None, config=EMPTY_CONFIG, layers=(EMPTY_CONFIG,)).render()
    await story.client.push_manifest("cache-index", image, media_type.IMAGE_MANIFEST)
    with pytest.raises(FormatError, match="not the index of a Nix cache"):
        await index.refresh(thoroughly=False)
    assert has(index, "one")


async def test_a_start_from_disk_needs_no_request(story: Story) -> None:
    """The catalog is there before the first request goes out, and the recorded key."""
    await publish(story.client, [store_object("one")], keys=[SecretKey.generate("one-1")])
    first = story.make_index()
    await first.refresh(thoroughly=True)
    story.ghcr.stop()
    second = story.make_index()
    await second.start()
    assert second.state.loaded_from_disk
    assert has(second, "one")
    assert second.state.public_key == first.state.public_key is not None
    await second.close()
    story.ghcr.start()


async def test_two_refreshes_at_once_do_not_get_into_each_others_way(story: Story) -> None:
    """The timer and an operator may come together."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    await asyncio.gather(*(index.refresh(thoroughly=True) for _ in range(4)))
    assert has(index, "one")


async def test_after_a_failed_first_attempt_nobody_waits(story: Story) -> None:
    """The deadline is for a registry that is slow; one that said no has been heard."""
    story.ghcr.stop()
    index = story.make_index()
    await index.start()
    loop = asyncio.get_running_loop()
    assert await index.current() is None
    before = loop.time()
    assert await index.current() is None
    assert loop.time() - before < 1
    await index.close()
    story.ghcr.start()


async def test_what_replaces_others_must_be_here_before_they_go(story: Story) -> None:
    """A merge lists one new segment for many old ones: if its table is damaged, the old ones are served."""
    await publish(story.client, [store_object("one"), store_object("two")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    merged = await publish(
        story.client,
        [store_object("one"), store_object("two")],
        created=CREATED + timedelta(hours=1),
        is_listed=False,
    )
    table = story.ghcr.read_blob(merged.table)
    story.ghcr.delete_blob(NAME, merged.table)
    await write_index(story.client, [merged])
    for _ in range(2):
        await index.refresh(thoroughly=False)
        assert has(index, "one")
        assert list(index.state.damaged) == [str(merged.tag)]
    # Also after a start.
    again = story.make_index()
    await again.start()
    await again.close()
    assert has(again, "two")
    story.ghcr.put_blob(NAME, table)
    await index.refresh(thoroughly=False)
    assert not index.state.damaged
    assert (index.segments, index.entries) == (1, 2)


async def test_a_new_version_1_document_that_is_damaged(story: Story) -> None:
    """The former one is served until it can be had."""
    await publish_version1(story.client, [store_object("one")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    known = set(story.ghcr.blobs(NAME))
    await publish_version1(story.client, [store_object("one"), store_object("two")])
    for blob in set(story.ghcr.blobs(NAME)) - known:
        story.ghcr.delete_blob(NAME, blob)
    await index.refresh(thoroughly=False)
    assert list(index.state.damaged) == ["cache-index"]
    assert has(index, "one")
    assert not has(index, "two")


async def test_a_condemned_segment_is_served(story: Story) -> None:
    """Until it is gone: a client may have its narinfos for a month."""
    segment = await publish(story.client, [store_object("condemned")])
    await write_index(story.client, [segment], condemned=True)
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "condemned")


async def test_a_collected_segment_costs_no_request_later(story: Story) -> None:
    """An index may list it for ever; once found to be gone it is not looked for at each poll."""
    segment = await publish(story.client, [store_object("collected")])
    story.ghcr.delete_manifest(NAME, str(segment.manifest))
    story.ghcr.delete_blob(NAME, segment.table)
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert index.segments == 0
    story.ghcr.reset_requests()
    await index.refresh(thoroughly=False)
    assert [record.operation for record in story.ghcr.requests] == ["manifest-head"]


async def test_tags_are_listed_every_hour(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that another writer overwrote with the very same bytes does not change; the tags did."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    await publish(story.client, [store_object("two")], created=CREATED + timedelta(hours=1), is_listed=False)
    await index.refresh(thoroughly=False)
    assert not has(index, "two")
    monkeypatch.setattr("nixcache_oci.proxy.live_index._TAGS_SECONDS", 0.0)
    await index.refresh(thoroughly=False)
    assert has(index, "two")


async def test_a_full_disk_keeps_nobody_from_what_is_new(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be saved is served, the failure is shown, and saving is tried again."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    with monkeypatch.context() as patch:
        patch.setattr(IndexFolder, "save", raising(OSError(28, "No space left on device")))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                await index.refresh(thoroughly=False)
            assert has(index, "one")
            assert "No space" in str(index.state.error)
    await index.refresh(thoroughly=False)
    assert index.state.error is None
    again = story.make_index()
    await again.start()
    await again.close()
    assert again.state.loaded_from_disk


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")]
)
async def test_a_pinned_key_that_cannot_be_read_or_written(
    story: Story, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The narinfos are served; no key is given out that could not be compared."""
    await publish(story.client, [store_object("one")], keys=[SecretKey.generate("one-1")])
    monkeypatch.setattr(IndexFolder, "pin_key", raising(error))
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "one")
    assert (index.state.public_key, index.state.other_keys) == (None, ())


async def test_a_bug_does_not_end_refreshing(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one refresh dies of, the next one comes; and nobody waits for it."""
    await publish(story.client, [store_object("one")])
    monkeypatch.setattr("nixcache_oci.proxy.live_index._FIRST_RETRY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(LiveIndex, "_look", raising(RuntimeError("a bug")))
        index = story.make_index()
        await index.start()
        assert await index.current() is None
        assert index.state.error == "a bug"
    async with asyncio.timeout(10):
        while index.catalog is None:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)
    assert has(index, "one")
    await index.close()


async def test_of_a_saved_index_without_its_tables_the_registry_has_the_word(
    story: Story, tmp_path: Path
) -> None:
    """Somebody emptied a part of the cache folder: a miss in the rest means nothing while there is hope."""
    first = await publish(story.client, [store_object("lost")])
    await publish(story.client, [store_object("kept")], created=CREATED + timedelta(hours=1))
    index = story.make_index()
    await index.refresh(thoroughly=True)
    [file] = (tmp_path / "index").glob(f"*/tables/{first.table.hex}.table")
    text = file.read_bytes()
    file.unlink()
    again = story.make_index()
    await again.start()
    assert again.catalog is None
    assert await again.current() is not None
    assert has(again, "lost")
    assert has(again, "kept")
    await again.close()
    assert file.read_bytes() == text
    # And without hope, the rest is served.
    file.unlink()
    story.ghcr.stop()
    third = story.make_index()
    await third.start()
    await third._attempted.wait()  # longer than a request would wait: the client tries for a while
    assert await third.current() is not None
    assert has(third, "kept")
    assert not has(third, "lost")
    await third.close()
    story.ghcr.start()


async def test_the_deadline_counts_from_the_start_once(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that hangs costs all requests together that time, and not each of them."""
    monkeypatch.setattr("nixcache_oci.proxy.live_index.FIRST_INDEX_SECONDS", 0.2)
    story.ghcr.fault("token", "stall", times=None)
    index = story.make_index()
    await index.start()
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await asyncio.gather(*(index.current() for _ in range(20))) == [None] * 20
    assert loop.time() - started >= 0.15
    later = loop.time()
    for _ in range(50):
        assert await index.current() is None
    assert loop.time() - later < 0.2 * 50 / 2
    await index.close()
    story.ghcr.clear_faults()


async def test_what_is_new_is_judged_before_anybody_asks(story: Story) -> None:
    """All of it, so that the first request for each costs no more than a later one."""
    await publish(story.client, [store_object("one")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    await publish(
        story.client,
        [store_object(f"new{number}") for number in range(25)],
        created=CREATED + timedelta(hours=1),
    )
    await index.refresh(thoroughly=False)
    assert index.catalog is not None
    tables = [table.file for table in index.catalog.tables]
    assert sorted(file.count for file in tables) == [1, 25]
    await until(lambda: all(file.verdicts == bytes([1]) * file.count for file in tables))
    await index.close()


async def test_closing_ends_what_is_judged_ahead(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is."""
    monkeypatch.setattr(parallel, "_SLICE_SECONDS", 0)
    monkeypatch.setattr(live_index, "_PAUSE_SECONDS", 1000)
    await publish(story.client, [store_object("one"), store_object("two")])
    index = story.make_index()
    await index.refresh(thoroughly=True)
    assert index.catalog is not None
    [table] = index.catalog.tables
    await until(lambda: table.file.verdicts.count(1) == 1)
    await asyncio.wait_for(index.close(), 10)
    assert table.file.verdicts.count(1) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}

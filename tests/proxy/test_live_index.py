"""The live index: refreshed behind requests, and never worse than it was."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import format_time
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

MakeIndex = Callable[[], LiveIndex]


@pytest.fixture
async def client(ghcr: Ghcr) -> AsyncIterator[Registry]:
    """A publisher."""
    client = ghcr.client()
    yield client
    await client.close()


@pytest.fixture
async def make_index(ghcr: Ghcr, tmp_path: Path) -> AsyncIterator[MakeIndex]:
    """Makes an index over the double; all share one folder, as a proxy that is started again does."""
    clients = []

    def make() -> LiveIndex:
        client = ghcr.client()
        clients.append(client)
        return LiveIndex(client, IndexFolder(tmp_path / "index", client.name), (), 300, Counters())

    yield make
    for one in clients:
        await one.close()


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


async def test_an_empty_repository_is_an_empty_cache(make_index: MakeIndex) -> None:
    """No index and no tags, said by the registry itself: every look-up is a miss, and none unknown."""
    index = make_index()
    await index.refresh(thoroughly=True)
    assert index.entries == 0
    assert index.catalog is not None


async def test_nothing_new_costs_one_request(ghcr: Ghcr, client: Registry, make_index: MakeIndex) -> None:
    """A reader polls with HEAD."""
    await publish(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    ghcr.server.reset_requests()
    await index.refresh(thoroughly=False)
    assert [record.operation for record in ghcr.server.requests] == ["manifest-head"]


async def test_what_is_new_is_all_that_is_fetched(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """A publish adds a table; those that are here already are not fetched again."""
    await publish(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    await publish(client, [store_object("two")], created=CREATED + timedelta(hours=1))
    ghcr.server.reset_requests()
    await index.refresh(thoroughly=False)
    assert ghcr.server.count("blob-get") == 1
    assert has(index, "one")
    assert has(index, "two")


async def test_a_segment_that_no_index_lists_is_found_by_its_tag(
    client: Registry, make_index: MakeIndex
) -> None:
    """Another writer's stale index overwrote the one that listed it: nothing is lost."""
    await publish(client, [store_object("listed")])
    await publish(
        client, [store_object("overwritten")], created=CREATED + timedelta(hours=1), is_listed=False
    )
    index = make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "listed")
    assert has(index, "overwritten")


async def test_a_damaged_table_takes_nothing_else_with_it(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """Its blob is gone and its manifest is there: damage, which is shown; the rest is served."""
    segment = await publish(client, [store_object("lost")])
    await publish(client, [store_object("kept")], created=CREATED + timedelta(hours=1))
    ghcr.server.delete_blob(NAME, segment.table)
    index = make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "kept")
    assert not has(index, "lost")
    assert list(index.state.damaged) == [str(segment.tag)]


async def test_the_last_copy_of_a_damaged_table_is_kept(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """What lies on this disk is still right, for it has its digest."""
    segment = await publish(client, [store_object("lost")])
    first = make_index()
    await first.refresh(thoroughly=True)
    ghcr.server.delete_blob(NAME, segment.table)
    second = make_index()
    await second.refresh(thoroughly=True)
    assert has(second, "lost")


async def test_a_segment_that_was_collected_is_dropped(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """Table and manifest are both gone: gc was faster, and that is no damage."""
    segment = await publish(client, [store_object("collected")])
    await publish(client, [store_object("kept")], created=CREATED + timedelta(hours=1))
    ghcr.server.delete_manifest(NAME, str(segment.manifest))
    ghcr.server.delete_blob(NAME, segment.table)
    index = make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "kept")
    assert not has(index, "collected")
    assert not index.state.damaged


async def test_a_table_with_a_flipped_byte_is_not_used(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """Tables are checked against their digest before use."""
    segment = await publish(client, [store_object("one")])
    ghcr.server.corrupt_blob(segment.table, 20)
    index = make_index()
    await index.refresh(thoroughly=True)
    assert not has(index, "one")
    assert index.state.damaged


async def test_an_index_that_is_none_of_ours_is_an_error(client: Registry, make_index: MakeIndex) -> None:
    """A container image under our tag is not an empty cache."""
    await publish(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    await client.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
    image = Manifest(artifact_type=None, config=EMPTY_CONFIG, layers=(EMPTY_CONFIG,)).render()
    await client.push_manifest("cache-index", image, media_type.IMAGE_MANIFEST)
    with pytest.raises(FormatError, match="not the index of a Nix cache"):
        await index.refresh(thoroughly=False)
    assert has(index, "one")


async def test_a_start_from_disk_needs_no_request(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """The catalog is there before the first request goes out."""
    await publish(client, [store_object("one")])
    first = make_index()
    await first.refresh(thoroughly=True)
    ghcr.server.stop()
    second = make_index()
    await second.start()
    assert second.state.loaded_from_disk
    assert has(second, "one")
    await second.close()
    ghcr.server.start()


async def test_two_refreshes_at_once_do_not_get_into_each_others_way(
    client: Registry, make_index: MakeIndex
) -> None:
    """The timer and an operator may come together."""
    await publish(client, [store_object("one")])
    index = make_index()
    await asyncio.gather(*(index.refresh(thoroughly=True) for _ in range(4)))
    assert has(index, "one")


async def test_after_a_failed_first_attempt_nobody_waits(ghcr: Ghcr, make_index: MakeIndex) -> None:
    """The deadline is for a registry that is slow; one that said no has been heard."""
    ghcr.server.stop()
    index = make_index()
    await index.start()
    loop = asyncio.get_running_loop()
    assert await index.current() is None
    before = loop.time()
    assert await index.current() is None
    assert loop.time() - before < 1
    await index.close()
    ghcr.server.start()


async def test_what_replaces_others_must_be_here_before_they_go(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """A merge lists one new segment for many old ones: if its table is damaged, the old ones are served."""
    await publish(client, [store_object("one"), store_object("two")])
    index = make_index()
    await index.refresh(thoroughly=True)
    merged = await publish(
        client,
        [store_object("one"), store_object("two")],
        created=CREATED + timedelta(hours=1),
        is_listed=False,
    )
    table = ghcr.server.read_blob(merged.table)
    ghcr.server.delete_blob(NAME, merged.table)
    await write_index(client, [merged])
    for _ in range(2):
        await index.refresh(thoroughly=False)
        assert has(index, "one")
        assert list(index.state.damaged) == [str(merged.tag)]
    # Also after a start.
    again = make_index()
    await again.start()
    await again.close()
    assert has(again, "two")
    ghcr.server.put_blob(NAME, table)
    await index.refresh(thoroughly=False)
    assert not index.state.damaged
    assert (index.segments, index.entries) == (1, 2)


async def test_a_new_version_1_document_that_is_damaged(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """The former one is served until it can be had."""
    await publish_version1(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    known = set(ghcr.server.blobs(NAME))
    await publish_version1(client, [store_object("one"), store_object("two")])
    for blob in set(ghcr.server.blobs(NAME)) - known:
        ghcr.server.delete_blob(NAME, blob)
    await index.refresh(thoroughly=False)
    assert list(index.state.damaged) == ["cache-index"]
    assert has(index, "one")
    assert not has(index, "two")


async def test_a_condemned_segment_is_served(client: Registry, make_index: MakeIndex) -> None:
    """Until it is gone: a client may have its narinfos for a month."""
    segment = await publish(client, [store_object("condemned")])
    await write_index(client, [segment], condemned=True)
    index = make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "condemned")


async def test_a_collected_segment_costs_no_request_later(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex
) -> None:
    """An index may list it for ever; once found to be gone it is not looked for at each poll."""
    segment = await publish(client, [store_object("collected")])
    ghcr.server.delete_manifest(NAME, str(segment.manifest))
    ghcr.server.delete_blob(NAME, segment.table)
    index = make_index()
    await index.refresh(thoroughly=True)
    assert index.segments == 0
    ghcr.server.reset_requests()
    await index.refresh(thoroughly=False)
    assert [record.operation for record in ghcr.server.requests] == ["manifest-head"]


async def test_tags_are_listed_every_hour(
    client: Registry, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that another writer overwrote with the very same bytes does not change; the tags did."""
    await publish(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    await publish(client, [store_object("two")], created=CREATED + timedelta(hours=1), is_listed=False)
    await index.refresh(thoroughly=False)
    assert not has(index, "two")
    monkeypatch.setattr("nixcache_oci.proxy.live_index._TAGS_SECONDS", 0.0)
    await index.refresh(thoroughly=False)
    assert has(index, "two")


async def test_a_full_disk_keeps_nobody_from_what_is_new(
    client: Registry, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be saved is served, the failure is shown, and saving is tried again."""
    await publish(client, [store_object("one")])
    index = make_index()
    with monkeypatch.context() as patch:
        patch.setattr(IndexFolder, "save", raising(OSError(28, "No space left on device")))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                await index.refresh(thoroughly=False)
            assert has(index, "one")
            assert "No space" in str(index.state.error)
    await index.refresh(thoroughly=False)
    assert index.state.error is None
    again = make_index()
    await again.start()
    await again.close()
    assert again.state.loaded_from_disk


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")]
)
async def test_a_pinned_key_that_cannot_be_read_or_written(
    client: Registry, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The narinfos are served; no key is given out that could not be compared."""
    await publish(client, [store_object("one")], keys=[SecretKey.generate("one-1")])
    monkeypatch.setattr(IndexFolder, "pin_key", raising(error))
    index = make_index()
    await index.refresh(thoroughly=True)
    assert has(index, "one")
    assert (index.state.public_key, index.state.other_keys) == (None, ())


async def test_a_bug_does_not_end_refreshing(
    client: Registry, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever one refresh dies of, the next one comes; and nobody waits for it."""
    await publish(client, [store_object("one")])
    monkeypatch.setattr("nixcache_oci.proxy.live_index._FIRST_RETRY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(LiveIndex, "_look", raising(RuntimeError("a bug")))
        index = make_index()
        await index.start()
        assert await index.current() is None
        assert index.state.error == "a bug"
    async with asyncio.timeout(10):
        while index.catalog is None:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)
    assert has(index, "one")
    await index.close()


async def test_of_a_saved_index_without_its_tables_the_registry_has_the_word(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex, tmp_path: Path
) -> None:
    """Somebody emptied a part of the cache folder: a miss in the rest means nothing while there is hope."""
    first = await publish(client, [store_object("lost")])
    await publish(client, [store_object("kept")], created=CREATED + timedelta(hours=1))
    index = make_index()
    await index.refresh(thoroughly=True)
    [file] = (tmp_path / "index").glob(f"*/tables/{first.table.hex}.table")
    text = file.read_bytes()
    file.unlink()
    again = make_index()
    await again.start()
    assert again.catalog is None
    assert await again.current() is not None
    assert has(again, "lost")
    assert has(again, "kept")
    await again.close()
    assert file.read_bytes() == text
    # And without hope, the rest is served.
    file.unlink()
    ghcr.server.stop()
    third = make_index()
    await third.start()
    await third._attempted.wait()  # longer than a request would wait: the client tries for a while
    assert await third.current() is not None
    assert has(third, "kept")
    assert not has(third, "lost")
    await third.close()
    ghcr.server.start()


async def test_the_deadline_counts_from_the_start_once(
    ghcr: Ghcr, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that hangs costs all requests together that time, and not each of them."""
    monkeypatch.setattr("nixcache_oci.proxy.live_index.FIRST_INDEX_SECONDS", 0.2)
    ghcr.server.fault("token", "stall", times=None)
    index = make_index()
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
    ghcr.server.clear_faults()


async def test_what_is_new_is_judged_before_anybody_asks(client: Registry, make_index: MakeIndex) -> None:
    """All of it, so that the first request for each costs no more than a later one."""
    await publish(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    await publish(
        client, [store_object(f"new{number}") for number in range(25)], created=CREATED + timedelta(hours=1)
    )
    await index.refresh(thoroughly=False)
    assert index.catalog is not None
    tables = [table.file for table in index.catalog.tables]
    assert sorted(file.count for file in tables) == [1, 25]
    await until(lambda: all(file.verdicts == bytes([1]) * file.count for file in tables))
    await index.close()


async def test_closing_ends_what_is_judged_ahead(
    client: Registry, make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is."""
    monkeypatch.setattr(live_index, "_PREVALIDATE_SECONDS", 0)
    monkeypatch.setattr(live_index, "_PREVALIDATE_PAUSE_SECONDS", 1000)
    await publish(client, [store_object("one"), store_object("two")])
    index = make_index()
    await index.refresh(thoroughly=True)
    assert index.catalog is not None
    [table] = index.catalog.tables
    await until(lambda: table.file.verdicts.count(1) == 1)
    await asyncio.wait_for(index.close(), 10)
    assert table.file.verdicts.count(1) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}

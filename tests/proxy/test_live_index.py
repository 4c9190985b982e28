"""The live index: refreshed behind requests, and never worse than it was."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import FormatError, RegistryError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED, publish
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


@pytest.mark.parametrize("operation", ["tags", "manifest-get", "blob-get", "storage-get"])
@pytest.mark.parametrize("kind", ["status", "garbage"])
async def test_whatever_goes_wrong_the_reader_keeps_what_it_has(
    ghcr: Ghcr, client: Registry, make_index: MakeIndex, operation: str, kind: str
) -> None:
    """Only the registry's own word makes a cache empty; and when the trouble is over, all is there."""
    await publish(client, [store_object("one")])
    index = make_index()
    await index.refresh(thoroughly=True)
    await publish(client, [store_object("two")], created=CREATED + timedelta(hours=1))
    status = 403 if operation != "storage-get" else 400
    ghcr.server.fault(operation, "status" if kind == "status" else "garbage", status=status, times=None)
    try:
        await index.refresh(thoroughly=True)
    except (RegistryError, FormatError):
        assert index.state.error is not None
    else:
        assert index.state.damaged, "it neither failed nor told of damage"
    assert has(index, "one")
    ghcr.server.clear_faults()
    await index.refresh(thoroughly=False)
    assert has(index, "two")
    assert index.state.error is None
    assert not index.state.damaged


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


async def test_the_first_key_is_pinned_and_a_change_is_flagged(
    client: Registry, make_index: MakeIndex
) -> None:
    """A key that turns up later is shown, and never followed."""
    first, second = SecretKey.generate("first-1"), SecretKey.generate("second-1")
    await publish(client, [store_object("one")], keys=[first])
    index = make_index()
    await index.refresh(thoroughly=True)
    assert index.state.public_key == str(first.public_key)
    assert index.state.other_keys == ()
    await publish(client, [store_object("two")], keys=[second], created=CREATED + timedelta(hours=1))
    await index.refresh(thoroughly=False)
    again = make_index()
    await again.refresh(thoroughly=True)
    for each in (index, again):
        assert each.state.public_key == str(first.public_key)
        assert each.state.other_keys == (str(second.public_key),)


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

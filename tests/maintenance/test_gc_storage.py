"""A collection on what really holds caches: an OCI layout, and docker-registry with its own collector."""

from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_sweep import LayoutRemover
from nixcache_oci.clients.repository import Remover, Repository
from nixcache_oci.errors import NotFoundError
from nixcache_oci.maintenance.gc.collect import Collected, carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import Thing, push_things
from tests.support.publish import CREATED

DAY = timedelta(days=1)
LIB = Thing("lib", size=50_000, is_large=True)
OLD = Thing("app-old", (LIB.base_name,), size=300_000, is_large=True)
OLD_SMALL = Thing("small-old", (OLD.base_name,), size=4_000)
NEW = Thing("app-new", (LIB.base_name,), size=100_000, is_large=True)
SMALL = Thing("small", (LIB.base_name,), size=5_000)


async def fill_and_collect(repository: Repository, remover: Remover) -> list[Collected]:
    """Publish twice, and collect in three steps: condemn, unlist, delete."""
    now = CREATED
    for things in ([LIB, SMALL, OLD, OLD_SMALL], [NEW]):
        roots = tuple(("app", thing.path) for thing in (things[-1], SMALL))
        await push_things(repository, things, [PublishRecord("main", things[-1].base_name, now, roots)], now)
        now += DAY
    collected = []
    for days in (31, 31, 1):
        now += days * DAY
        clock = partial(_same, now)
        prepared = await prepare_gc(repository, remover, GcOptions(), clock=clock)
        collected.append(await carry_out_gc(repository, remover, prepared, force=True, clock=clock))
    return collected


def _same(time: datetime) -> datetime:
    return time


async def check(repository: Repository) -> None:
    """The kept bytes are there, and those that left are not named any more."""
    for thing in (LIB, NEW):
        assert await repository.stat_blob(Digest.of(thing.content)) == len(thing.content)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def test_layout(tmp_path: Path) -> None:
    """Files of what left are gone."""
    root = tmp_path / "cache"
    layout = Layout(root)
    *_, last = await fill_and_collect(layout, LayoutRemover(root, min_age_seconds=0))
    await check(layout)
    assert last.deleted
    assert not last.refused
    with pytest.raises(NotFoundError):
        await layout.stat_blob(Digest.of(OLD.content))
    kept = sum(len(thing.content) for thing in (LIB, NEW, SMALL))
    assert kept < size_of(root) < kept + 30_000
    await layout.close()


async def test_what_is_repacked_keeps_to_what_the_registry_takes(tmp_path: Path) -> None:
    """A merge gathers the packs of many segments: it makes none that the registry would refuse."""
    root, limit = tmp_path / "cache", 20_000
    layout = Layout(root)
    things = [Thing(str(number), size=5_000) for number in range(20)]
    roots = tuple((thing.base_name, thing.path) for thing in things)
    for number, thing in enumerate(things):
        records = [PublishRecord("main", "1", CREATED, roots)] if number == 0 else []
        await push_things(layout, [thing], records, CREATED + number * timedelta(minutes=1))
    clock = partial(_same, CREATED + 2 * DAY)
    remover = LayoutRemover(root)
    prepared = await prepare_gc(
        layout, remover, GcOptions(segments=SegmentOptions(max_blob_bytes=limit)), clock=clock
    )
    before = {path.name for path in (root / "blobs/sha256").iterdir()}
    collected = await carry_out_gc(layout, remover, prepared, clock=clock)
    written = [path for path in (root / "blobs/sha256").iterdir() if path.name not in before]
    assert len(collected.written) >= 1
    assert max(path.stat().st_size for path in written) <= limit
    assert sum(path.stat().st_size > limit // 2 for path in written) >= 4

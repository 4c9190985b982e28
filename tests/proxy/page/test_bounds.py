"""What pages may cost: jobs that wait, jobs that take long, records of a registry that writes many."""

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record
from nixcache_oci.clients.layout import Layout
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.page import jobs
from nixcache_oci.proxy.page.jobs import MOST_WAITING, PageJobs
from nixcache_oci.proxy.page.recorded import MOST_CACHES, MOST_RECORDED, RecordedKeepers
from tests.proxy.page.conftest import Site
from tests.support.front import open_cache, read_index
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish
from tests.support.sample_cache import sample_path

PATH = store_object("x").narinfo.store_path


def until(done: asyncio.Event) -> Generator[None, None, str]:
    while not done.is_set():
        yield
    return "done"


async def test_pages_wait_for_their_turn_up_to_a_number() -> None:
    """One job at a time; who comes when many wait is told so, and all others get their pages."""
    page_jobs, done = PageJobs(), asyncio.Event()
    running = [asyncio.create_task(page_jobs.run(until(done))) for _ in range(2 * MOST_WAITING)]
    for _ in range(50):
        await asyncio.sleep(0)
    refused = [task for task in running if task.done()]
    assert len(refused) == MOST_WAITING
    assert all(isinstance(task.exception(), web.HTTPServiceUnavailable) for task in refused)
    done.set()
    assert await asyncio.gather(*(task for task in running if task not in refused)) == ["done"] * MOST_WAITING
    assert await page_jobs.run(until(done)) == "done"


async def test_a_job_that_has_no_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one gets its turn."""
    monkeypatch.setattr(jobs, "JOB_SECONDS", 0.01)
    page_jobs, done = PageJobs(), asyncio.Event()
    with pytest.raises(web.HTTPServiceUnavailable):
        await page_jobs.run(until(done))
    done.set()
    assert await page_jobs.run(until(done)) == "done"


async def test_a_busy_page_is_503(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser may try again; narinfos are answered all the while."""
    monkeypatch.setattr(jobs, "JOB_SECONDS", 0)
    await site.get("/?q=hello", status=503)
    hash_part = sample_path("hello-2.12.2").hash_part
    async with site.session.get(f"{site.url}/{hash_part}.narinfo") as answer:
        assert answer.status == 200


async def opened(folder: Path, *records: Record) -> OpenedCache:
    repository = Layout(folder / "cache")
    await publish(repository, [store_object("x")], records=records)
    await repository.close()
    return open_cache(await read_index(folder))


async def test_records_are_read_up_to_a_number(tmp_path: Path) -> None:
    """The newest tables' first; what was left out is said."""
    folder = tmp_path
    roots = tuple((f"root{number}", PATH) for number in range(MOST_RECORDED // 2))
    old = PublishRecord("old", "1", CREATED, roots)
    new = PublishRecord("new", "1", CREATED, roots)
    await opened(folder, old)
    repository = Layout(folder / "cache")
    await publish(repository, [store_object("y")], records=[new], created=CREATED.replace(year=2027))
    await repository.close()
    cache = open_cache(await read_index(folder))
    assert cache.index.catalog is not None
    keepers = await RecordedKeepers(PageJobs()).of(cache, cache.index.catalog)
    assert {root.scope for root in keepers.roots} == {"new"}
    assert len(keepers.roots) == MOST_RECORDED // 2
    assert not keepers.is_whole


async def test_pins_count_for_more(tmp_path: Path) -> None:
    """Which of them count takes time that grows with the square of their number."""
    pins = [PinRecord("one", PATH, CREATED, "for 5 revisions") for _ in range(1)]
    pins += [PinRecord(f"p{number}", PATH, CREATED, "forever") for number in range(1500)]
    cache = await opened(tmp_path, *pins)
    assert cache.index.catalog is not None
    keepers = await RecordedKeepers(PageJobs()).of(cache, cache.index.catalog)
    assert len(keepers.pins) == MOST_RECORDED // 20
    assert not keepers.is_whole


async def test_records_of_few_caches_are_kept(tmp_path: Path) -> None:
    """Those that were looked at last, and none of an index that changed."""
    recorded = RecordedKeepers(PageJobs())
    caches = [await opened(tmp_path / str(number)) for number in range(MOST_CACHES + 2)]
    kept = []
    for cache in caches:
        assert cache.index.catalog is not None
        kept.append(await recorded.of(cache, cache.index.catalog))
    assert list(recorded._read) == caches[2:]
    last = caches[-1]
    assert last.index.catalog is not None
    assert await recorded.of(last, last.index.catalog) is kept[-1]
    last.index.state.changed_at = 1.0
    assert await recorded.of(last, last.index.catalog) is not kept[-1]

"""The HTTP surface in-process: what a handler dies of becomes a status in one place."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.proxy import app_keys
from nixcache_oci.proxy.config import MIN_PACK_MEMORY_BYTES
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.packs.prefetch import Prefetch
from tests.support.front import app_of, proxy_config
from tests.support.slow_repository import SlowRepository

Client = TestClient[Request, Application]

NARINFO = f"/{'0' * 32}.narinfo"


class Bench:
    """An application, and what it was made of."""

    def __init__(self, client: Client, repository: SlowRepository, index: LiveIndex) -> None:
        self.client = client
        self.repository = repository
        self.index = index


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    config = proxy_config(tmp_path, pack_memory_bytes=MIN_PACK_MEMORY_BYTES)
    repository, counters = SlowRepository(), Counters()
    index = LiveIndex(repository, IndexFolder(tmp_path, repository.name), (), 300, counters)
    await index.refresh(thoroughly=True)
    app = app_of(config, repository, index, counters)
    async with TestClient(TestServer(app)) as client:
        yield Bench(client, repository, index)
        repository.gate.set()


async def test_the_memory_for_packs_is_as_configured(bench: Bench) -> None:
    """With the least of it, 16 MiB are fetched that nobody has asked for, where 256 MiB take 64."""
    bench.repository.gate.clear()
    packs = bench.client.app[app_keys.CACHES].configured[0].packs
    for number in range(20):
        packs.prefetch(Prefetch(bench.repository.add(bytes([number])), 2**20))
    assert packs.used_bytes == 16 * 2**20


@pytest.mark.parametrize(
    "error",
    [
        RegistryError("secret detail", status=503, is_temporary=True),
        DigestError("secret detail"),
        OSError(5, "secret detail"),
        ConnectionResetError("secret detail"),
        TimeoutError("secret detail"),
        RuntimeError("secret detail"),
    ],
)
@pytest.mark.parametrize("place", [f"{'0' * 64}.nar.zst", f"{'0' * 64}/0-1.nar.zst"])
@pytest.mark.parametrize(("method", "headers"), [("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=1-"})])
async def test_whatever_a_nar_fails_of_is_404(
    bench: Bench, error: Exception, place: str, method: str, headers: dict[str, str]
) -> None:
    """Nix survives only that; and the body tells nothing of the inside."""
    bench.repository.error = error
    answer = await bench.client.request(method, f"/nar/{place}", headers=headers)
    assert answer.status == 404
    assert await answer.read() == (b"Not Found\n" if method == "GET" else b"")
    assert answer.headers["Server"] == "nixcache-oci"


async def test_a_bug_in_a_look_up_is_404_and_logged_whole(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500 would end a build that could go on; whoever mends it needs the traceback."""
    monkeypatch.setattr("nixcache_oci.proxy.endpoints.narinfo.look_up", None)
    answer = await bench.client.get(NARINFO)
    assert answer.status == 404
    assert await answer.text() == "Not Found\n"
    [record] = [record for record in caplog.records if record.message == "unexpected error"]
    assert record.exc_info is not None


async def test_a_refresh_that_fails_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """502, and how many narinfos are served all the same; why, is in the status."""

    async def fail(*_arguments: object, **_options: object) -> None:
        raise RegistryError("it is down")

    monkeypatch.setattr(bench.index, "_refresh", fail)
    answer = await bench.client.post("/_refresh")
    assert answer.status == 502
    assert await answer.json() == {"refreshed": False, "entries": 0}
    status = await (await bench.client.get("/_status")).json()
    assert status["index"]["last_error"] == "it is down"
    assert status["counters"]["refresh_failures"] == 1


async def test_without_any_key_there_is_none_to_give(bench: Bench) -> None:
    """404: an empty answer would be taken for a key."""
    assert (await bench.client.get("/public-key")).status == 404


async def test_what_a_client_asks_first(bench: Bench) -> None:
    """From memory, whatever else is wrong."""
    answer = await bench.client.get("/nix-cache-info")
    assert await answer.text() == "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
    assert answer.headers["Content-Type"].startswith("text/x-nix-cache-info")


async def test_metrics_are_what_prometheus_reads(bench: Bench) -> None:
    """Its own parser takes them."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # only here

    text = await (await bench.client.get("/metrics")).text()
    values = {one.name: one.value for each in text_string_to_metric_families(text) for one in each.samples}
    assert values["nixcache_entries"] == 0
    assert "nixcache_hits_total" in values

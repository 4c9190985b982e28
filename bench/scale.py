"""What a large cache costs a reader: start from disk, memory, look-ups, and a refresh beside requests."""

import http.client
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

from bench.delays import ask_during
from bench.figures import Series, Target
from bench.made_up_tables import list_made_up, made_up_hash_parts
from bench.scenario import OURS, Bench, Measurement
from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.table_set import TableSet
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import HashPart
from tests.support.journey import push_with, put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.registries import REPO, Ghcr, ghcr_double

TITLE = "caches of 10,000 to 1,000,000 paths, and of 1,500 segments: start, memory, look-ups, refresh"

# Paths and segments.
_SIZES = ((10_000, 1), (100_000, 2), (1_000_000, 20), (1_000_000, 1500))
_SMALL = 2
_NEW_PATHS = 100
_LOOK_UPS = 20_000
_MIB = 1024 * 1024
_STILL_SECONDS = 0.2
_ASKED_FOR = 10_000
_STILL = "without a refresh"


def run(bench: Bench) -> None:
    """Measure caches of several sizes."""
    for paths, segments in _SIZES[:_SMALL] if bench.is_quick else _SIZES:
        series = _SeriesAt(paths, segments)
        with ghcr_double() as registry, tempfile.TemporaryDirectory() as name:
            cache = _Cache(Path(name), registry, series, _fill(registry, paths, segments))
            bench.compare({OURS: cache.start_without_index}, rounds=1)
            bench.compare({OURS: cache.start})
            bench.compare({OURS: cache.look_up})
            with cache.running() as proxy:
                bench.figures.record(series.anonymous, OURS, proxy.anonymous_bytes() / _MIB)
                bench.figures.record(series.resident, OURS, proxy.rss_bytes() / _MIB)
                bench.compare(
                    {OURS: partial(cache.refresh, proxy), _STILL: partial(cache.stand_still, proxy)}
                )
    few, many = (_SeriesAt(*size) for size in _SIZES[_SMALL:])
    for one, limit in (
        (few.ready, 2),
        (few.anonymous, 300),
        (few.p99, 50),
        (few.refresh_bytes, 200_000),
        (few.delay, 20),
        (many.fetched, 60),
        (many.anonymous, 60),
        (many.delay_p99, 1),
    ):
        bench.expect(Target(one, OURS, limit))


class _SeriesAt:
    """The series of a cache of so many paths in so many segments."""

    def __init__(self, paths: int, segments: int) -> None:
        def series(name: str, unit: str) -> Series:
            is_many = segments == _SIZES[-1][1]
            return Series(
                name, unit, at=paths, axis=f"paths in {segments:,} segments" if is_many else "paths"
            )

        self.first_index = series("start to first narinfo, nothing on disk", "s")
        self.fetched = series("RssAnon after the first fetch", "MiB")
        self.ready = series("start to first narinfo, from disk", "s")
        self.anonymous = series("RssAnon after 10,000 look-ups", "MiB")
        self.resident = series("RSS after 10,000 look-ups", "MiB")
        self.first_p50 = series("first look-up of a path, p50", "µs")
        self.first_p99 = series("first look-up of a path, p99", "µs")
        self.p50 = series("look-up, p50", "µs")
        self.p99 = series("look-up, p99", "µs")
        self.refresh_bytes = series(f"refresh after {_NEW_PATHS} paths", "bytes")
        self.refresh_time = series(f"refresh after {_NEW_PATHS} paths, time", "s")
        self.delay = series("longest request during a refresh", "ms")
        self.delay_p99 = series("request during a refresh, p99", "ms")


@dataclass(frozen=True, slots=True)
class _Cache:
    """A cache of so many paths, and a folder for the proxies that read it."""

    folder: Path
    registry: Ghcr
    series: _SeriesAt
    hash_parts: Sequence[HashPart]

    @property
    def _settings(self) -> dict[str, str]:
        return settings_of(self.registry, self.folder)

    def start_without_index(self) -> Measurement:
        """Start where nothing is on disk."""
        begun = time.monotonic()
        with ProxyProcess(self.folder, **self._settings) as proxy:
            proxy.wait_ready()
            self._ask(proxy)
            seconds = time.monotonic() - begun
            return {
                self.series.first_index: seconds,
                self.series.fetched: proxy.anonymous_bytes() / _MIB,
            }

    def start(self) -> Measurement:
        """Start from what is on disk."""
        begun = time.monotonic()
        with ProxyProcess(self.folder, **self._settings) as proxy:
            self._ask(proxy)
            return {self.series.ready: time.monotonic() - begun}

    def look_up(self) -> Measurement:
        """Look random paths up in this process, for the first time, which validates them, and again."""
        loaded = IndexFolder(self.folder / "index", f"{self.registry.server.host}/{REPO}/nix-cache").load()
        if loaded is None:
            raise RuntimeError("the proxy has left no index")
        catalog = TableSet.of(*loaded).catalog(())
        wanted = random.sample(self.hash_parts, min(_LOOK_UPS, len(self.hash_parts)))
        first, again = (_percentiles(catalog, wanted) for _ in range(2))
        return {
            self.series.first_p50: first[49],
            self.series.first_p99: first[98],
            self.series.p50: again[49],
            self.series.p99: again[98],
        }

    def running(self) -> ProxyProcess:
        """Make a proxy that has answered 10,000 requests once it runs."""
        return _WarmProxy(self.folder, self.hash_parts[:_ASKED_FOR], self._settings)

    def refresh(self, proxy: ProxyProcess) -> Measurement:
        """Publish, and let a proxy look while it is asked without a pause."""
        new = [f"{next(_numbers)}" for _ in range(_NEW_PATHS)]
        put(self.registry, [store_object(seed) for seed in new], [SecretKey.generate("bench-1")])
        double = self.registry.server
        double.reset_requests()
        seconds, delays = self._ask_during(proxy, proxy.refresh)
        sent = sum(record.bytes_sent for record in double.requests)
        assert proxy.ask(f"/{hash_part_of(new[0])}.narinfo", method="HEAD").status == 200
        return {self.series.refresh_bytes: sent, self.series.refresh_time: seconds, **delays}

    def stand_still(self, proxy: ProxyProcess) -> Measurement:
        """Ask without any refresh: what this machine does to requests anyway."""
        return self._ask_during(proxy, lambda: time.sleep(_STILL_SECONDS))[1]

    def _ask_during(self, proxy: ProxyProcess, job: Callable[[], object]) -> tuple[float, Measurement]:
        """Ask for narinfos while a job is done; gives its seconds, and how long requests took."""
        seconds, during = ask_during(proxy.host, self.hash_parts[:_ASKED_FOR], job)
        return seconds, {
            self.series.delay: max(during) * 1000,
            self.series.delay_p99: statistics.quantiles(during, n=100)[98] * 1000,
        }

    def _ask(self, proxy: ProxyProcess) -> None:
        assert proxy.ask(f"/{self.hash_parts[0]}.narinfo", method="HEAD").status == 200


def _percentiles(catalog: Catalog, wanted: Sequence[HashPart]) -> list[float]:
    """Time look-ups; gives the microseconds that 1, 2, … 99 of a hundred take at most."""
    seconds = []
    for hash_part in wanted:
        begun = time.perf_counter()
        narinfo = catalog.find(hash_part)
        seconds.append(time.perf_counter() - begun)
        assert narinfo is not None
    return [one * 1e6 for one in statistics.quantiles(seconds, n=100)]


class _WarmProxy(ProxyProcess):
    """A proxy that has answered requests."""

    def __init__(self, folder: Path, asked: Sequence[HashPart], settings: dict[str, str]) -> None:
        super().__init__(folder, **settings)
        self._asked = asked

    def __enter__(self) -> Self:
        super().__enter__()
        connection = http.client.HTTPConnection(self.host)
        for hash_part in self._asked:
            connection.request("HEAD", f"/{hash_part}.narinfo")
            assert connection.getresponse().read() == b""
        connection.close()
        self.refresh()
        return self


_numbers = count()


def _fill(registry: Ghcr, paths: int, segments: int) -> list[HashPart]:
    """List so many made-up paths; gives their hash parts in no order."""
    hash_parts = made_up_hash_parts(paths)

    async def push(client: Repository) -> None:
        await list_made_up(client, hash_parts, segments)

    push_with(registry, push)
    random.Random(paths).shuffle(hash_parts)
    return hash_parts

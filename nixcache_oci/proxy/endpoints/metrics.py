"""``/metrics``: the counters for Prometheus."""

import time
from collections.abc import Iterator
from dataclasses import fields

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from nixcache_oci.proxy.app_keys import CACHES, UPSTREAMS
from nixcache_oci.proxy.cache_set import CacheSet
from nixcache_oci.proxy.counters import CACHE_COUNTERS, Counters
from nixcache_oci.proxy.opened_cache import OpenedCache


class _ProxyCollector(Collector):
    """Reads the counters on request: there is no second set."""

    def __init__(self, app: web.Application) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        caches = self._app[CACHES]
        counters, configured = caches.totals(), caches.configured
        for counter in fields(Counters):
            text = counter.name.replace("_", " ")
            yield CounterMetricFamily(f"nixcache_{counter.name}", text, value=getattr(counters, counter.name))
        entries = sum(cache.index.entries for cache in configured)
        yield GaugeMetricFamily("nixcache_entries", "narinfos listed", value=entries)
        segments = sum(cache.index.segments for cache in configured)
        yield GaugeMetricFamily("nixcache_segments", "segments of the cache", value=segments)
        damaged = sum(len(cache.index.state.damaged) for cache in configured)
        yield GaugeMetricFamily("nixcache_damaged_tables", "tables that cannot be read", value=damaged)
        ages = [age for cache in configured if (age := _age(cache)) is not None]
        if len(ages) == len(configured):
            yield GaugeMetricFamily(
                "nixcache_index_age_seconds", "since the index was last confirmed", value=max(ages)
            )
        yield GaugeMetricFamily(
            "nixcache_pack_cache_bytes", "packs in memory", value=caches.budget.used_bytes
        )
        yield from _of_each(caches)
        failures = CounterMetricFamily(
            "nixcache_upstream_failures", "requests without a usable answer", labels=["upstream"]
        )
        for health in self._app[UPSTREAMS].health():
            failures.add_metric([health.url], health.failures)
        yield failures


def _of_each(caches: CacheSet) -> Iterator[Metric]:
    """Yield what tells the caches apart; those opened on demand are one, as anybody may name any number."""
    labels = {cache.prefix or cache.repository.name: cache for cache in caches.configured}
    counted = {label: cache.counters for label, cache in labels.items()}
    on_demand = caches.on_demand
    if on_demand is not None:
        counted["on-demand"] = on_demand.counters
        yield GaugeMetricFamily(
            "nixcache_on_demand_open", "caches opened on demand", value=len(on_demand.opened)
        )
        yield GaugeMetricFamily(
            "nixcache_on_demand_disk_bytes",
            "their indexes on disk, when last measured",
            value=on_demand.disk_bytes,
        )
    for name in CACHE_COUNTERS:
        family = CounterMetricFamily(f"nixcache_cache_{name}", name.replace("_", " "), labels=["cache"])
        for label, counters in counted.items():
            family.add_metric([label], getattr(counters, name))
        yield family
    listed = GaugeMetricFamily("nixcache_cache_entries", "narinfos listed", labels=["cache"])
    ages = GaugeMetricFamily(
        "nixcache_cache_index_age_seconds", "since the index was last confirmed", labels=["cache"]
    )
    for label, cache in labels.items():
        listed.add_metric([label], cache.index.entries)
        if (age := _age(cache)) is not None:
            ages.add_metric([label], age)
    yield from (listed, ages)


def _age(cache: OpenedCache) -> float | None:
    checked_at = cache.index.state.checked_at
    return None if checked_at is None else max(0.0, time.time() - checked_at)


async def get_metrics(request: web.Request) -> web.Response:
    """Return the counters in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_ProxyCollector(request.app))
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

"""``/metrics``: the same numbers for Prometheus."""

import time
from collections.abc import Iterator
from dataclasses import fields

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from nixcache_oci.proxy.app_keys import COUNTERS, INDEX, PACKS, UPSTREAMS
from nixcache_oci.proxy.counters import Counters


class _ProxyCollector(Collector):
    """Reads the counters when it is asked: there is no second set of them."""

    def __init__(self, app: web.Application) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        counters, index = self._app[COUNTERS], self._app[INDEX]
        for counter in fields(Counters):
            text = counter.name.replace("_", " ")
            yield CounterMetricFamily(f"nixcache_{counter.name}", text, value=getattr(counters, counter.name))
        yield GaugeMetricFamily("nixcache_entries", "narinfos listed", value=index.entries)
        yield GaugeMetricFamily("nixcache_segments", "segments of the cache", value=index.segments)
        yield GaugeMetricFamily(
            "nixcache_damaged_tables", "tables that cannot be read", value=len(index.state.damaged)
        )
        if index.state.checked_at is not None:
            age = max(0.0, time.time() - index.state.checked_at)
            yield GaugeMetricFamily(
                "nixcache_index_age_seconds", "since the index was last confirmed", value=age
            )
        yield GaugeMetricFamily(
            "nixcache_pack_cache_bytes", "packs in memory", value=self._app[PACKS].used_bytes
        )
        failures = CounterMetricFamily(
            "nixcache_upstream_failures", "requests without a usable answer", labels=["upstream"]
        )
        for health in self._app[UPSTREAMS].health():
            failures.add_metric([health.url], health.failures)
        yield failures


async def get_metrics(request: web.Request) -> web.Response:
    """Show the counters in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_ProxyCollector(request.app))
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

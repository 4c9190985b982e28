"""``/_status``: the state of the proxy for operators, as JSON."""

import time
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import Final

from aiohttp import web

from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.proxy.app_keys import CACHES, CONFIG, STARTED, UPSTREAMS, caches_of
from nixcache_oci.proxy.counters import CACHE_COUNTERS
from nixcache_oci.proxy.on_demand.caches import OnDemandCaches
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.regression import Seen

# The registry decides how many problems there are: lists show the first, and the count.
_MAX_SHOWN: Final = 20
_MAX_CHARACTERS: Final = 500


async def get_status(request: web.Request) -> web.Response:
    """Return the state of the proxy, or below a prefix of that cache."""
    ttl_seconds = request.app[CONFIG].index_ttl_seconds
    if "prefix" in request.match_info:
        async with caches_of(request) as caches:
            return web.json_response(_describe(caches[0], ttl_seconds))
    return web.json_response(_take_snapshot(request.app))


def _take_snapshot(app: web.Application) -> dict[str, object]:
    """Collect the state, without secrets: of the first cache, the totals, and of each cache."""
    caches = app[CACHES]
    described = [_describe(cache, app[CONFIG].index_ttl_seconds) for cache in caches.opened]
    return {
        **described[0],
        "entries": sum(cache.index.entries for cache in caches.configured),
        "segments": sum(cache.index.segments for cache in caches.configured),
        "uptime_seconds": round(time.time() - app[STARTED], 1),
        "upstreams": [asdict(health) for health in app[UPSTREAMS].health()],
        "pack_cache_bytes": caches.budget.used_bytes,
        "counters": asdict(caches.totals()),
        "caches": described,
        "on_demand": _describe_on_demand(caches.on_demand),
    }


def _describe_on_demand(caches: OnDemandCaches | None) -> dict[str, object] | None:
    if caches is None:
        return None
    counters = {name: getattr(caches.counters, name) for name in CACHE_COUNTERS}
    return {
        "open": len(caches.opened),
        "absent": caches.absent,
        "disk_bytes": caches.disk_bytes,
        "counters": counters,
    }


def _describe(cache: OpenedCache, ttl_seconds: float) -> dict[str, object]:
    """Collect the state of one cache. Ages are in seconds, sizes in bytes."""
    index = cache.index
    state = index.state
    now = time.time()
    return {
        "registry": cache.repository.name,
        "prefix": cache.prefix,
        "entries": index.entries,
        "segments": index.segments,
        "index": {
            "ready": index.catalog is not None,
            "loaded_from_disk": state.loaded_from_disk,
            "age_seconds": _age(now, state.checked_at),
            "changed_seconds_ago": _age(now, state.changed_at),
            "last_error": _clip(state.error),
            "damaged_tables": {
                tag: _clip(reason) for tag, reason in islice(state.damaged.items(), _MAX_SHOWN)
            },
            "damaged_count": len(state.damaged),
            "left_out": state.left_out,
            "complete": index.is_complete,
            "newest_segment": _show(index.watch.seen.newest_now),
            "regression": _show_regression(index.watch.seen),
            "ttl_seconds": ttl_seconds,
        },
        "public_keys": {
            "configured": [str(key) for key in cache.public_keys],
            "recorded": state.public_key,
            "recorded_others": list(state.other_keys[:_MAX_SHOWN]),
            "changed": bool(state.other_keys),
        },
        "pack_cache_bytes": cache.packs.used_bytes,
        **({"uploads": cache.uploads.status()} if cache.uploads is not None else {}),
        "counters": {name: getattr(cache.counters, name) for name in CACHE_COUNTERS},
    }


def _show(time_of: datetime | None) -> str | None:
    return None if time_of is None else format_time(time_of)


def _show_regression(seen: Seen) -> dict[str, object] | None:
    if seen.regressed_since is None:
        return None
    return {
        "since": _show(seen.regressed_since),
        "newest_segment_seen": _show(seen.newest),
        "missing_segments": sorted(seen.missing)[:_MAX_SHOWN],
        "missing_count": len(seen.missing),
    }


def _clip(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def _age(now: float, time_of: float | None) -> float | None:
    return None if time_of is None else round(max(0.0, now - time_of), 1)

"""What the handlers share, each under a typed key of the aiohttp application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.proxy.ahead.narinfos import NarinfosAhead
from nixcache_oci.proxy.ahead.nars import NarsAhead
from nixcache_oci.proxy.cache_set import CacheSet
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front.connections import Connections
from nixcache_oci.proxy.front.fast_path import FastPath
from nixcache_oci.proxy.guard import HostGuard
from nixcache_oci.proxy.lookup import UpstreamFinder
from nixcache_oci.proxy.nar_streams import NarStreams
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.page.pages import Pages
from nixcache_oci.proxy.signature_union import SignatureUnion

CACHES = web.AppKey("caches", CacheSet)
NARS_AHEAD = web.AppKey("nars_ahead", NarsAhead)
NARINFOS_AHEAD = web.AppKey("narinfos_ahead", NarinfosAhead)
CONFIG = web.AppKey("config", ProxyConfig)
CONNECTIONS = web.AppKey("connections", Connections)
COUNTERS = web.AppKey("counters", Counters)
FAST_PATH = web.AppKey("hits", FastPath)
HOST_GUARD = web.AppKey("host_guard", HostGuard)
FINDER = web.AppKey("finder", UpstreamFinder)
NAR_STREAMS = web.AppKey("nar_streams", NarStreams)
PAGES = web.AppKey("pages", Pages)
UPSTREAMS = web.AppKey("upstreams", Upstreams)
SIGNATURES = web.AppKey("signatures", SignatureUnion)
STARTED = web.AppKey("started", float)


@asynccontextmanager
async def caches_of(request: web.Request) -> AsyncIterator[tuple[OpenedCache, ...]]:
    """Keep open what a request is for: the cache that its prefix names, or at the root all configured ones.

    Raises HTTPNotFound if the prefix names none.
    """
    caches, prefix = request.app[CACHES], request.match_info.get("prefix")
    if prefix is None:
        yield caches.configured
        return
    async with caches.using(prefix) as cache:
        if cache is None:
            raise web.HTTPNotFound
        yield (cache,)

"""What the handlers share, each under a typed key of the aiohttp application."""

from aiohttp import web

from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.guard import HostGuard
from nixcache_oci.proxy.hits import Hits
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.pack_cache import PackCache

CONFIG = web.AppKey("config", ProxyConfig)
COUNTERS = web.AppKey("counters", Counters)
HITS = web.AppKey("hits", Hits)
HOST_GUARD = web.AppKey("host_guard", HostGuard)
INDEX = web.AppKey("index", LiveIndex)
NARS = web.AppKey("nars", NarSource)
PACKS = web.AppKey("packs", PackCache)
REPOSITORY = web.AppKey("repository", Repository)
UPSTREAMS = web.AppKey("upstreams", Upstreams)
STARTED = web.AppKey("started", float)

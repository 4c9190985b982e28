"""What the handlers share, each under a typed key of the aiohttp application."""

from aiohttp import web

from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.proxy.ahead.narinfos import NarinfosAhead
from nixcache_oci.proxy.ahead.nars import NarsAhead
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front.connections import Connections
from nixcache_oci.proxy.front.fast_path import FastPath
from nixcache_oci.proxy.guard import HostGuard
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.lookup import UpstreamFinder
from nixcache_oci.proxy.nar_source import NarSource
from nixcache_oci.proxy.nar_streams import NarStreams
from nixcache_oci.proxy.packs.cache import PackCache
from nixcache_oci.proxy.refresh_coalescer import RefreshCoalescer
from nixcache_oci.proxy.signature_union import SignatureUnion
from nixcache_oci.proxy.uploads.uploads import Uploads

NARS_AHEAD = web.AppKey("nars_ahead", NarsAhead)
NARINFOS_AHEAD = web.AppKey("narinfos_ahead", NarinfosAhead)
CONFIG = web.AppKey("config", ProxyConfig)
CONNECTIONS = web.AppKey("connections", Connections)
COUNTERS = web.AppKey("counters", Counters)
FAST_PATH = web.AppKey("hits", FastPath)
HOST_GUARD = web.AppKey("host_guard", HostGuard)
FINDER = web.AppKey("finder", UpstreamFinder)
INDEX = web.AppKey("index", LiveIndex)
NARS = web.AppKey("nars", NarSource)
NAR_STREAMS = web.AppKey("nar_streams", NarStreams)
PACKS = web.AppKey("packs", PackCache)
REPOSITORY = web.AppKey("repository", Repository)
UPSTREAMS = web.AppKey("upstreams", Upstreams)
REFRESHES = web.AppKey("refreshes", RefreshCoalescer)
SIGNATURES = web.AppKey("signatures", SignatureUnion)
UPLOADS = web.AppKey("uploads", Uploads)  # only where uploads are on
STARTED = web.AppKey("started", float)

"""Running the proxy: start from disk, listen, serve, and stop within five seconds."""

import asyncio
import ctypes
import errno
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.upstream.address import NarMode, UrlSigner
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.narinfo_store import NarinfoStore
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import Error
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy.app import build_app
from nixcache_oci.proxy.app_keys import CONNECTIONS, FAST_PATH, HOST_GUARD
from nixcache_oci.proxy.cache_set import CacheSet, ConfiguredCache
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front.aiohttp_protocol import protocol_factory
from nixcache_oci.proxy.front.connection import FrontServer
from nixcache_oci.proxy.front.request_head import HeadReader
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.on_demand.caches import OnDemandCaches
from nixcache_oci.proxy.on_demand.settings import OnDemandSettings
from nixcache_oci.proxy.open_files import current_limits
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.systemd import Notifier
from nixcache_oci.proxy.tls import HANDSHAKE_SECONDS, open_tls
from nixcache_oci.proxy.uploads.uploads import Uploads
from nixcache_oci.proxy.upstream_state import load_url_secret, remember_upstreams

_log = logging.getLogger(__name__)

# Transfers have so long to end; Nix resumes those that are cut then. The library waits twice: before it
# cancels a handler, and after.
_GRACE_SECONDS: Final = 1.5
_BACKLOG: Final = 128
# For so many NARs that may stream, one more blob may be on its way before a client asks.
_SHARE_AHEAD: Final = 4
_EVERY_ADDRESS: Final = "::"
# A thread that parses or sorts keeps the event loop waiting for so long, each time that it has read or sent
# something: Python's usual 5 ms would be seen by every request during a refresh.
_SWITCH_SECONDS: Final = 0.0001
# A full collection walks what 1,500 segments hold in 40 ms, in which nobody is answered: a hundredth as often
# as usual. Hardly anything is in cycles.
_GC_THRESHOLDS: Final = (700, 10, 1000)
# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT_BYTES: Final = 16 * 1024 * 1024
# Above any streamed piece; packs are larger, stay for minutes, and are returned when dropped.
_RETURNED_ABOVE_BYTES: Final = 2 * 1024 * 1024


async def run_proxy(
    config: ProxyConfig,
    configured: Sequence[ConfiguredCache],
    *,
    on_demand: OnDemandSettings | None = None,
    activated_sockets: Sequence[socket.socket],
    notify: Notifier,
    announce: Callable[[Sequence[str]], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: of the proxy.
        configured: caches that the root serves, at least one, in the order in which they are asked.
        on_demand: which other caches are opened when a request names them; None for none.
        activated_sockets: of systemd; with any, the address in ``config`` is not used.
        notify: reports readiness to systemd.
        announce: receives the addresses once requests are answered.

    Raises:
        UsageError: an unusable setting.
        Error: the port cannot be listened on.
    """
    _keep_freed_memory()
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(*_GC_THRESHOLDS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(
        config, configured, on_demand=on_demand, activated_sockets=activated_sockets
    ) as addresses:
        announce(addresses)
        names = " ".join(cache.repository.name for cache in configured)
        _log.info("serving", extra={"fields": {"registry": names, "address": " ".join(addresses)}})
        notify.ready()
        await stop.wait()
        _log.info("stopping")
        notify.stopping()


def _keep_freed_memory() -> None:
    """Keep up to 16 MiB of freed memory in the process, for all threads; without glibc, do nothing.

    A proxy constantly allocates and frees pieces of 256 KiB. glibc returns each to the kernel, which zeroes
    the pages again: a quarter of the time of a large NAR. It also gives each thread an arena of its own, in
    which freed memory stays: 12 MiB once a million paths were fetched.

    Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _RETURNED_ABOVE_BYTES)


@asynccontextmanager
async def serving(
    config: ProxyConfig,
    configured: Sequence[ConfiguredCache],
    *,
    on_demand: OnDemandSettings | None = None,
    activated_sockets: Sequence[socket.socket] = (),
) -> AsyncIterator[list[str]]:
    """Serve while the block runs, and yield the addresses; arguments and errors as of ``run_proxy``."""
    required = (key for cache in configured for key in cache.public_keys)
    client_keys = tuple(dict.fromkeys((*required, *config.trusted_keys)))
    named = open_upstreams(config.upstreams)
    upstreams = Upstreams(
        named,
        former=await asyncio.to_thread(remember_upstreams, config.index_dir, named, time.time()),
        mode=NarMode(config.upstream_nars),
        signer=UrlSigner(await asyncio.to_thread(load_url_secret, config.index_dir)),
        store_dir=config.store_dir,
        client_keys=client_keys,
        store=await asyncio.to_thread(NarinfoStore.open, config.index_dir) if named else None,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(upstreams.close)
        budget = PackBudget(config.pack_memory_bytes, current_limits().streams // _SHARE_AHEAD)
        # Without upstreams and other caches, there are no other signatures.
        is_alone = len(configured) == 1 and not config.upstreams
        opened = [
            await stack.enter_async_context(
                _opened(cache, config, budget, None if is_alone or cache.public_keys else client_keys)
            )
            for cache in configured
        ]
        caches = CacheSet(opened, budget, OnDemandCaches(on_demand, config, budget) if on_demand else None)
        app = build_app(config, caches, upstreams, client_keys)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE_SECONDS)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        # The index first: the first request must find what is on disk.
        for cache in opened:
            await cache.index.start()
        if runner.server is None:
            raise AssertionError("setup() makes it")
        connections = app[CONNECTIONS]
        library = protocol_factory(runner.server, connections)
        front = FrontServer(library, HeadReader(app[HOST_GUARD].allows), app[FAST_PATH], connections)
        listeners = await _listen(front, config, activated_sockets)
        for listener in listeners:
            stack.callback(listener.close)
        yield [
            _address(each.getsockname(), is_tls=config.tls is not None)
            for listener in listeners
            for each in listener.sockets
        ]


@asynccontextmanager
async def _opened(
    cache: ConfiguredCache,
    config: ProxyConfig,
    budget: PackBudget,
    client_keys: tuple[PublicKey, ...] | None,
) -> AsyncIterator[OpenedCache]:
    repository, counters = cache.repository, Counters()
    folder = await asyncio.to_thread(IndexFolder, config.index_dir, repository.name)
    index = LiveIndex(
        repository,
        folder,
        cache.public_keys,
        config.index_ttl_seconds,
        counters,
        store_dir=config.store_dir,
        # With keys configured, all that is served is signed by one of them.
        client_keys=client_keys,
    )
    async with AsyncExitStack() as stack:
        uploads = None
        if cache.uploads is not None:
            uploads = await stack.enter_async_context(Uploads.opened(cache.uploads, index))
        yield OpenedCache(repository, index, counters, budget, cache.public_keys, uploads, cache.prefix)


async def _listen(
    front: FrontServer, config: ProxyConfig, activated_sockets: Sequence[socket.socket]
) -> list[asyncio.Server]:
    tls = await asyncio.to_thread(open_tls, config.tls) if config.tls is not None else None
    listen = partial(
        asyncio.get_running_loop().create_server,
        front,
        backlog=_BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_SECONDS if tls is not None else None,
    )
    if activated_sockets:
        return [await listen(sock=activated) for activated in activated_sockets]
    try:
        if config.listen == _EVERY_ADDRESS and socket.has_dualstack_ipv6():
            # asyncio would listen on IPv6 alone, and `use` names 127.0.0.1 to this machine's Nix.
            both = socket.create_server(
                (config.listen, config.port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
            )
            return [await listen(sock=both)]
        return [await listen(host=config.listen, port=config.port)]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = (
            "set NIXCACHE_LISTEN to an address of this machine, or NIXCACHE_PORT to a port that you may use"
        )
        if error.errno == errno.EADDRINUSE:
            reason = "address already in use"  # which asyncio says at length
            remedy = "stop the program that listens there, or set NIXCACHE_PORT (0 picks a free port)"
        raise Error(f"cannot listen on {config.listen} port {config.port}: {reason}; {remedy}") from None


def _address(address: object, *, is_tls: bool) -> str:
    scheme = "https" if is_tls else "http"
    match address:
        case (str(host), int(port), *_):
            return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    return f"unix:{address}"

"""The application: routes, guards, and the one place where errors become statuses."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Final, NoReturn, Protocol

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from nixcache_oci.cache.parallel import cancel_all
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy import app_keys
from nixcache_oci.proxy.ahead.narinfos import NarinfosAhead
from nixcache_oci.proxy.ahead.nars import NarsAhead
from nixcache_oci.proxy.cache_set import CacheSet
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.endpoints.cache_info import get_cache_info
from nixcache_oci.proxy.endpoints.health import get_health
from nixcache_oci.proxy.endpoints.nar import get_nar
from nixcache_oci.proxy.endpoints.narinfo import get_narinfo
from nixcache_oci.proxy.endpoints.page import page_routes
from nixcache_oci.proxy.endpoints.public_key import get_public_key
from nixcache_oci.proxy.endpoints.refresh import post_refresh
from nixcache_oci.proxy.endpoints.status import get_status
from nixcache_oci.proxy.endpoints.uploads import post_mass_query, upload_routes
from nixcache_oci.proxy.endpoints.upstream_nar import get_upstream_nar
from nixcache_oci.proxy.front.aiohttp_protocol import AiohttpProtocol
from nixcache_oci.proxy.front.connections import Connections
from nixcache_oci.proxy.front.fast_path import FastPath
from nixcache_oci.proxy.front.responses import COMMON_HEADERS
from nixcache_oci.proxy.guard import ALLOW_HEADER, SITE_HEADER, HostGuard, is_from_elsewhere, own_names
from nixcache_oci.proxy.lookup import UpstreamFinder
from nixcache_oci.proxy.nar_streams import NarStreams
from nixcache_oci.proxy.open_files import current_limits
from nixcache_oci.proxy.packs.memory import PackMemory
from nixcache_oci.proxy.page.pages import Pages
from nixcache_oci.proxy.prefix import PREFIX
from nixcache_oci.proxy.relay import UnsatisfiableRangeError
from nixcache_oci.proxy.signature_union import SignatureUnion
from nixcache_oci.proxy.uploads.interface import UploadRefusedError

_log = logging.getLogger(__name__)

_HEALTH: Final = "/health"
# Others may wait for long, and must not take the connections that are kept for these.
_FAST: Final = (_HEALTH, ".narinfo")
_SWEEP_SECONDS: Final = 2.0
_UPLOADS_OFF: Final = (
    "uploads are off here: publish with nixcache-oci push, or start the proxy with NIXCACHE_UPLOADS=1\n"
)
_PREFIX_ROUTE: Final = f"/{{prefix:{PREFIX}}}"


def build_app(
    config: ProxyConfig, caches: CacheSet, upstreams: Upstreams, client_keys: tuple[PublicKey, ...] = ()
) -> web.Application:
    """Build the application, which closes the caches, and nothing else that it is given."""
    limits = current_limits()
    connections = Connections(limits.connections)
    streams = NarStreams(limits.streams, connections)
    host_guard = HostGuard(config.hosts | own_names(socket.gethostname()))
    app = web.Application(middlewares=[_errors_to_statuses, _count, _guard(host_guard)])
    app[app_keys.CACHES] = caches
    app[app_keys.CONFIG] = config
    app[app_keys.CONNECTIONS] = connections
    app[app_keys.COUNTERS] = caches.counters
    app[app_keys.FINDER] = finder = UpstreamFinder(upstreams, limits.streams)
    counters, is_on = caches.counters, config.ahead
    narinfos_ahead = NarinfosAhead(finder, caches.is_listed, config.store_dir, counters, is_on=is_on)
    memory = PackMemory(caches.budget, time.monotonic)
    nars_ahead = NarsAhead(upstreams, memory, counters, is_on=is_on)
    app[app_keys.NARINFOS_AHEAD] = narinfos_ahead
    app[app_keys.NARS_AHEAD] = nars_ahead
    app[app_keys.SIGNATURES] = union = SignatureUnion(
        finder, client_keys, has_upstreams=bool(config.upstreams)
    )
    app[app_keys.FAST_PATH] = FastPath(caches, union)
    app[app_keys.HOST_GUARD] = host_guard
    app[app_keys.NAR_STREAMS] = streams
    app[app_keys.PAGES] = Pages()
    app[app_keys.STARTED] = time.time()
    app[app_keys.UPSTREAMS] = upstreams
    of_a_cache = [
        ("GET", "/nix-cache-info", get_cache_info),
        ("GET", "/{hash_part:[^/]+}.narinfo", get_narinfo),
        ("GET", "/nar/{place:.+}", get_nar),
        ("GET", "/public-key", get_public_key),
        ("GET", "/_status", get_status),
        ("POST", "/_refresh", post_refresh),
        ("POST", "/mass-query", post_mass_query),
    ]
    app.add_routes(
        [
            web.get("/upstream/{key:[^/]+}/{path:.+}", get_upstream_nar),
            web.get(_HEALTH, get_health),
            web.get("/metrics", _get_metrics),
        ]
    )
    # The root comes first: no prefix is taken for what it has.
    for start in ("", _PREFIX_ROUTE):
        for method, path, handler in of_a_cache:
            (app.router.add_get if method == "GET" else app.router.add_post)(start + path, handler)
        if caches.takes_uploads:
            app.add_routes(upload_routes(start))
        app.add_routes(page_routes(start))
    app.on_response_prepare.append(_add_common_headers)

    async def run(app: web.Application) -> AsyncIterator[None]:
        sweeping = _sweep((connections, streams, narinfos_ahead, nars_ahead))
        running = [asyncio.create_task(sweeping, name="sweep")]
        if caches.on_demand is not None:
            running.append(asyncio.create_task(caches.on_demand.run(), name="idle caches"))
        async with AsyncExitStack() as stack:
            for cache in caches.configured:
                if cache.uploads is not None:
                    publishing = cache.uploads.publishing(config, cache.public_keys, finder)
                    await stack.enter_async_context(publishing)
            yield
        await cancel_all(running)
        await app[app_keys.FINDER].close()
        await caches.close()

    async def stop_ahead(_: web.Application) -> None:
        await narinfos_ahead.close()
        await nars_ahead.close()

    app.cleanup_ctx.append(run)
    app.on_shutdown.append(stop_ahead)  # before requests are waited for, some of which wait for it
    return app


class _Swept(Protocol):
    """What lets go of what is not used."""

    def sweep(self, now: float, /) -> None: ...


async def _sweep(bounds: Sequence[_Swept]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        for bound in bounds:
            try:
                bound.sweep(clock())
            except Exception:  # noqa: BLE001  # the next sweep must come
                _log.exception("unexpected error")


async def _get_metrics(request: web.Request) -> web.Response:
    # Importing its library takes a twentieth of the start, and few ask for metrics.
    from nixcache_oci.proxy.endpoints.metrics import get_metrics  # noqa: PLC0415 -- see above

    return await get_metrics(request)


@web.middleware
async def _errors_to_statuses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Map every error to a status with a bare body, because messages leak paths.

    Nix survives only 200 and 404: what cannot be served is 404.
    """
    try:
        return await handler(request)
    except UnsatisfiableRangeError as error:
        status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        return _bare(status, {hdrs.CONTENT_RANGE: f"bytes */{error.size}"})
    except UploadRefusedError as error:
        return _refuse_upload(request, error)
    except web.HTTPMethodNotAllowed as error:
        response = _bare(HTTPStatus.METHOD_NOT_ALLOWED, {hdrs.ALLOW: error.headers[hdrs.ALLOW]})
        if request.method == hdrs.METH_PUT and not request.app[app_keys.CACHES].takes_uploads:
            response.text = _UPLOADS_OFF
        return response
    except web.HTTPException as error:
        return _bare(HTTPStatus(error.status))
    except Error as error:
        request.app[app_keys.COUNTERS].nars_refused += 1
        fields = {"path": request.path, "error": str(error)}
        # Logged by kind: invented requests must not hide the registry's errors.
        _log.info("not served", extra={"fields": fields, "kind": type(error).__name__})
    except ConnectionError:
        # Most likely the client went away; if not, the library would answer 500.
        _log.debug("client went away", extra={"fields": {"path": request.path}})
    except Exception:  # noqa: BLE001  # logged whole: Nix must not see a 500
        _log.exception("unexpected error", extra={"fields": {"path": request.path}})
    return _bare(HTTPStatus.NOT_FOUND)


def _refuse_upload(request: web.Request, error: UploadRefusedError) -> web.Response:
    """Tell an uploader, alone of all clients, why: Nix shows the text."""
    fields = {"path": request.path, "error": str(error)}
    _log.info("upload refused", extra={"fields": fields, "kind": "upload refused"})
    is_asking = error.status == HTTPStatus.UNAUTHORIZED
    headers = {hdrs.WWW_AUTHENTICATE: 'Basic realm="nixcache-oci"'} if is_asking else None
    return web.Response(status=error.status, text=f"{error}\n", headers=headers)


def _bare(status: HTTPStatus, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{status.phrase}\n", headers=headers)


@web.middleware
async def _count(request: web.Request, handler: Handler) -> web.StreamResponse:
    protocol = request.protocol
    if isinstance(protocol, AiohttpProtocol) and not protocol.begin() and not request.path.endswith(_FAST):
        # Nix asks for a NAR again if its connection is cut; at a 404 it would build.
        protocol.connection.cut()
        raise ConnectionResetError("too many requests are being answered")
    return await handler(request)


def _guard(host_guard: HostGuard) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall(hdrs.HOST, [])
        if not request.raw_path.startswith("/"):
            # RFC 9112, section 3.2.2: a target in absolute form names the host, whatever Host says.
            hosts = [*hosts, request.url.raw_authority]
        if not all(map(host_guard.allows, hosts)):
            _refuse(request, "its Host is not one of ours; add names to answer to in NIXCACHE_HOSTS")
        headers = request.headers
        sites, origins = headers.getall(SITE_HEADER, []), headers.getall(hdrs.ORIGIN, [])
        # Not request.host, which resolves the machine's own name if there is none.
        host, allow = headers.get(hdrs.HOST, ""), headers.get(ALLOW_HEADER)
        if (sites or origins) and is_from_elsewhere(sites, origins, host, allow):
            _refuse(request, "a browser sent it for a page of another site")
        return await handler(request)

    return guard


def _refuse(request: web.Request, reason: str) -> NoReturn:
    fields = {"host": request.headers.get(hdrs.HOST, ""), "path": request.path, "reason": reason}
    _log.warning("request refused", extra={"fields": fields, "kind": reason})
    raise web.HTTPForbidden


async def _add_common_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(COMMON_HEADERS)

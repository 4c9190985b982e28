"""``/upstream/<key>/mac-…/…``: relays NARs of upstreams."""

from aiohttp import hdrs, web

from nixcache_oci.clients.upstream.address import VIA, parse_via
from nixcache_oci.clients.upstream.nar_stream import NarHead
from nixcache_oci.errors import UpstreamNotFoundError
from nixcache_oci.proxy.app_keys import COUNTERS, NAR_STREAMS, NARS_AHEAD, UPSTREAMS
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front.aiohttp_protocol import client_of, connection_of
from nixcache_oci.proxy.nar_source import pieces
from nixcache_oci.proxy.relay import ByteRange, nar_headers, parse_range, relay, send_head, wanted_range


async def get_upstream_nar(request: web.Request) -> web.StreamResponse:
    """Send one NAR of an upstream, or a range of it."""
    key = request.match_info["key"]
    path, query = _path_as_sent(request, key)
    upstreams, counters = request.app[UPSTREAMS], request.app[COUNTERS]
    wanted = wanted_range(request)
    via = parse_via(request.headers.getall(VIA, []))
    # For HEAD as well: an upstream may take minutes to answer, on a connection of its own.
    async with request.app[NAR_STREAMS].turn(connection_of(request)):
        if request.method == hdrs.METH_HEAD:
            return await send_head(request, _headers(await upstreams.head_nar(key, path, query, via=via)))
        ahead = await _fetched_ahead(request) if not via else None
        if ahead is not None:
            extent = parse_range(wanted, len(ahead)) or ByteRange.whole(len(ahead))
            chunks = pieces(ahead, extent.start, extent.end)
            return await relay(request, chunks, nar_headers(extent), lambda sent: _count(counters, sent))
        start, end = 0, None
        if wanted is not None:
            head = await upstreams.head_nar(key, path, query, via=via)
            part = parse_range(wanted, head.size) if head.size is not None else None
            if part is not None:
                start, end = part.start, part.end
        async with upstreams.open_nar(key, path, query, start=start, end=end, via=via) as nar:
            return await relay(request, nar.chunks, _headers(nar.head), lambda sent: _count(counters, sent))


async def _fetched_ahead(request: web.Request) -> bytearray | None:
    try:
        return await request.app[NARS_AHEAD].nar(client_of(request), request.raw_path[1:])
    except ConnectionError:
        connection_of(request).cut()  # Nix asks again; at a 404 it would build
        raise


def _path_as_sent(request: web.Request, key: str) -> tuple[str, str]:
    # Not decoded: that could change the path at the upstream.
    path, _, query = request.raw_path.partition("?")
    prefix = f"/upstream/{key}/"
    if not path.startswith(prefix):
        raise UpstreamNotFoundError("no path below an upstream")
    return path.removeprefix(prefix), query


def _headers(head: NarHead) -> dict[str, str]:
    extent = None
    if head.size is not None and head.end is not None:
        extent = ByteRange(head.start, head.end, head.size)
    return nar_headers(extent, accepts_ranges=head.accepts_ranges)


def _count(counters: Counters, sent_bytes: int) -> None:
    counters.upstream_nar_bytes += sent_bytes

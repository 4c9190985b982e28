"""``/nar/…``: a NAR from a blob or a pack."""

from aiohttp import hdrs, web

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.proxy.app_keys import COUNTERS, NAR_STREAMS, NARS
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.front.aiohttp_protocol import connection_of
from nixcache_oci.proxy.relay import ByteRange, nar_headers, parse_range, relay, send_head, wanted_range


async def get_nar(request: web.Request) -> web.StreamResponse:
    """Send one NAR; uses one chunk of memory, whatever its size."""
    url = NarUrl.parse(f"nar/{request.match_info['place']}")
    if url.offset is not None:
        return await _send_slice(request, url)
    if request.method == hdrs.METH_HEAD:
        return await send_head(request, nar_headers(ByteRange.whole(await request.app[NARS].size(url.blob))))
    async with request.app[NAR_STREAMS].turn(connection_of(request)):
        return await _send_blob(request, url)


async def _send_slice(request: web.Request, url: NarUrl) -> web.StreamResponse:
    nar = await request.app[NARS].slice_of_pack(url)
    part = parse_range(wanted_range(request), len(nar)) or ByteRange.whole(len(nar))
    counters = request.app[COUNTERS]
    if request.method == hdrs.METH_GET:
        counters.nars += 1
        _count(counters, part.end - part.start)
    # The library sets the length from the body.
    headers = nar_headers(part)
    del headers[hdrs.CONTENT_LENGTH]
    return web.Response(
        status=200 if part.is_whole else 206, body=nar[part.start : part.end], headers=headers
    )


async def _send_blob(request: web.Request, url: NarUrl) -> web.StreamResponse:
    nars, counters = request.app[NARS], request.app[COUNTERS]
    wanted = wanted_range(request)
    part = parse_range(wanted, await nars.size(url.blob)) if wanted is not None else None
    if part is not None and not part.is_whole:
        async with nars.part(url.blob, part.start, part.end) as chunks:
            return await relay(request, chunks, nar_headers(part), lambda sent: _count(counters, sent))
    async with nars.whole(url.blob) as (size, chunks):
        headers = nar_headers(ByteRange.whole(size))
        return await relay(request, chunks, headers, lambda sent: _count(counters, sent))


def _count(counters: Counters, sent_bytes: int) -> None:
    counters.nar_bytes += sent_bytes

"""``/nar/…``: a NAR from a blob or a pack."""

from collections.abc import AsyncIterator
from functools import partial
from typing import IO, Final

from aiohttp import hdrs, web

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.proxy.app_keys import COUNTERS, NAR_STREAMS, NARS, UPLOADS
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.endpoints.uploads import parse_nar_name
from nixcache_oci.proxy.front.aiohttp_protocol import connection_of
from nixcache_oci.proxy.relay import ByteRange, nar_headers, parse_range, relay, send_head, wanted_range

_CHUNK_BYTES: Final = 256 * 1024


async def get_nar(request: web.Request) -> web.StreamResponse:
    """Send one NAR; uses one chunk of memory, whatever its size."""
    place = request.match_info["place"]
    if UPLOADS in request.app:
        answer = await _get_uploaded(request, place)
        if answer is not None:
            return answer
    url = NarUrl.parse(f"nar/{place}")
    if url.offset is not None:
        return await _send_slice(request, url)
    if request.method == hdrs.METH_HEAD:
        return await send_head(request, nar_headers(ByteRange.whole(await request.app[NARS].size(url.blob))))
    async with request.app[NAR_STREAMS].turn(connection_of(request)):
        return await _send_blob(request, url)


async def _get_uploaded(request: web.Request, place: str) -> web.StreamResponse | None:
    """Send a NAR out of the spool, or from where it is by now; None if it may be in the registry."""
    parsed = parse_nar_name(place)
    if parsed is None:
        return None
    uploads = request.app[UPLOADS]
    nar = uploads.spool.find_nar(parsed[0])
    if nar is not None and nar.suffix == parsed[1]:
        size = nar.measured.file_size
        if request.method == hdrs.METH_HEAD:
            return await send_head(request, nar_headers(ByteRange.whole(size)))
        part = parse_range(wanted_range(request), size) or ByteRange.whole(size)
        async with request.app[NAR_STREAMS].turn(connection_of(request)):
            with await run_in_thread(uploads.spool.open_nar, nar) as file:
                chunks = _read_part(file, part)
                count = partial(_count, request.app[COUNTERS])
                return await relay(request, chunks, nar_headers(part), count)
    narinfo = uploads.find_published(parsed[0])
    if narinfo is not None and request.method == hdrs.METH_GET:
        # Not for HEAD: a client asks that before it uploads, and another path may have the same NAR.
        url = NarUrl.parse(narinfo.url)
        return await (_send_blob(request, url) if url.offset is None else _send_slice(request, url))
    if not place.startswith(parsed[0]):
        raise web.HTTPNotFound  # in nix32, as only uploaders ask: no fault, and nothing for the log
    return None


async def _read_part(file: IO[bytes], part: ByteRange) -> AsyncIterator[bytes]:
    file.seek(part.start)
    left = part.end - part.start
    while left and (chunk := await run_in_thread(file.read, min(left, _CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk


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

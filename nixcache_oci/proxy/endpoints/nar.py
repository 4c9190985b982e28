"""``/nar/…``: a NAR from a blob or a pack."""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Final

from aiohttp import hdrs, web

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.errors import Error
from nixcache_oci.proxy.app_keys import NAR_STREAMS, caches_of
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.endpoints.uploads import parse_nar_name, uploads_at_root
from nixcache_oci.proxy.front.aiohttp_protocol import connection_of
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.relay import ByteRange, nar_headers, parse_range, relay, send_head, wanted_range
from nixcache_oci.proxy.uploads.uploads import Uploads

_CHUNK_BYTES: Final = 256 * 1024


async def get_nar(request: web.Request) -> web.StreamResponse:
    """Send one NAR; uses one chunk of memory, whatever its size."""
    place = request.match_info["place"]
    async with caches_of(request) as caches:
        for cache in caches:
            if cache.uploads is not None:
                answer = await _get_uploaded(request, cache, cache.uploads, place)
                if answer is not None:
                    return answer
        if uploads_at_root(caches) is not None and _is_in_nix32(place):
            raise web.HTTPNotFound  # as only uploaders ask: no fault, and nothing for the log
        url = NarUrl.parse(f"nar/{place}")
        cache = caches[0] if len(caches) == 1 else await _find_holder(request, caches, url)
        if url.offset is not None:
            return await _send_slice(request, cache, url)
        if request.method == hdrs.METH_HEAD:
            return await send_head(request, nar_headers(ByteRange.whole(await cache.nars.size(url.blob))))
        async with request.app[NAR_STREAMS].turn(connection_of(request)):
            return await _send_blob(request, cache, url)


def _is_in_nix32(place: str) -> bool:
    parsed = parse_nar_name(place)
    return parsed is not None and not place.startswith(parsed[0])


async def _find_holder(request: web.Request, caches: Sequence[OpenedCache], url: NarUrl) -> OpenedCache:
    """Find which cache of the root has a NAR whose URL does not say; the last one if none has.

    Clients remember URLs from when there was one cache. Nix asks by HEAD before it uploads, which only the
    cache that would take the upload can answer.
    """
    if request.method == hdrs.METH_HEAD and (taking := uploads_at_root(caches)) is not None:
        return taking
    for cache in caches:
        if cache.nars.cached(url) is not None:
            return cache
    for cache in caches[:-1]:
        with suppress(Error):
            await cache.nars.size(url.blob)
            return cache
    return caches[-1]


async def _get_uploaded(
    request: web.Request, cache: OpenedCache, uploads: Uploads, place: str
) -> web.StreamResponse | None:
    """Send a NAR out of the spool, or from where it is by now; None if it may be in the registry."""
    parsed = parse_nar_name(place)
    if parsed is None:
        return None
    nar = uploads.spool.find_nar(parsed[0])
    if nar is not None and nar.suffix == parsed[1]:
        size = nar.measured.file_size
        if request.method == hdrs.METH_HEAD:
            return await send_head(request, nar_headers(ByteRange.whole(size)))
        part = parse_range(wanted_range(request), size) or ByteRange.whole(size)
        async with request.app[NAR_STREAMS].turn(connection_of(request)):
            with await run_in_thread(uploads.spool.open_nar, nar) as file:
                chunks = _read_part(file, part)
                count = partial(_count, cache.counters)
                return await relay(request, chunks, nar_headers(part), count)
    narinfo = uploads.find_published(parsed[0])
    if narinfo is not None and request.method == hdrs.METH_GET:
        # Not for HEAD: a client asks that before it uploads, and another path may have the same NAR.
        url = NarUrl.parse(narinfo.url)
        send = _send_blob if url.offset is None else _send_slice
        return await send(request, cache, url)
    return None


async def _read_part(file: IO[bytes], part: ByteRange) -> AsyncIterator[bytes]:
    file.seek(part.start)
    left = part.end - part.start
    while left and (chunk := await run_in_thread(file.read, min(left, _CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk


async def _send_slice(request: web.Request, cache: OpenedCache, url: NarUrl) -> web.StreamResponse:
    nar = await cache.nars.slice_of_pack(url)
    part = parse_range(wanted_range(request), len(nar)) or ByteRange.whole(len(nar))
    counters = cache.counters
    if request.method == hdrs.METH_GET:
        counters.nars += 1
        _count(counters, part.end - part.start)
    # The library sets the length from the body.
    headers = nar_headers(part)
    del headers[hdrs.CONTENT_LENGTH]
    return web.Response(
        status=200 if part.is_whole else 206, body=nar[part.start : part.end], headers=headers
    )


async def _send_blob(request: web.Request, cache: OpenedCache, url: NarUrl) -> web.StreamResponse:
    nars, counters = cache.nars, cache.counters
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

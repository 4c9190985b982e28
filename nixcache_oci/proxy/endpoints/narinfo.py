"""``/<hash part>.narinfo``: the narinfo of a store path."""

from typing import Final

from aiohttp import hdrs, web

from nixcache_oci.clients.http.public_address import names_loopback
from nixcache_oci.clients.upstream.address import VIA, parse_via
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.app_keys import (
    COUNTERS,
    FINDER,
    NARINFOS_AHEAD,
    NARS_AHEAD,
    SIGNATURES,
    caches_of,
)
from nixcache_oci.proxy.front.aiohttp_protocol import client_of
from nixcache_oci.proxy.front.responses import NARINFO_TYPE
from nixcache_oci.proxy.lookup import look_up, look_up_in

_HEADERS: Final = {hdrs.CONTENT_TYPE: NARINFO_TYPE}


async def get_narinfo(request: web.Request) -> web.Response:
    """Look up a narinfo; unknown is 404 too, because Nix survives only 200 and 404."""
    try:
        hash_part = HashPart.parse(request.match_info["hash_part"])
    except FormatError:
        raise web.HTTPNotFound from None
    app = request.app
    via = parse_via(request.headers.getall(VIA, []))
    async with caches_of(request) as caches:
        if "prefix" in request.match_info:
            found = await look_up_in(caches[0], hash_part, app[COUNTERS])
        else:
            if not via:  # another proxy looks ahead itself
                app[NARINFOS_AHEAD].asked(hash_part)
            found = await look_up(hash_part, caches, app[FINDER], app[COUNTERS], app[SIGNATURES], via)
        if found.narinfo is None:
            raise web.HTTPNotFound
        if found.cache is not None and request.method == hdrs.METH_GET:
            found.cache.prefetch_for(found.narinfo)
    if found.found is not None and not via:
        client = client_of(request)
        app[NARINFOS_AHEAD].given(found.found, is_here=names_loopback(client))
        if request.method == hdrs.METH_GET:
            app[NARS_AHEAD].handed_out(client, found.found)
    return web.Response(body=found.narinfo, headers=_HEADERS)

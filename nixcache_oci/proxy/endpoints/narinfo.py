"""``/<hash part>.narinfo``: the narinfo of a store path."""

from functools import partial
from typing import Final

from aiohttp import hdrs, web

from nixcache_oci.clients.upstream.address import VIA, parse_via
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.app_keys import COUNTERS, FAST_PATH, FINDER, INDEX, SIGNATURES, UPLOADS
from nixcache_oci.proxy.front.responses import NARINFO_TYPE
from nixcache_oci.proxy.lookup import Verdict, look_up

_HEADERS: Final = {hdrs.CONTENT_TYPE: NARINFO_TYPE}


async def get_narinfo(request: web.Request) -> web.Response:
    """Look up a narinfo; unknown is 404 too, because Nix survives only 200 and 404."""
    try:
        hash_part = HashPart.parse(request.match_info["hash_part"])
    except FormatError:
        raise web.HTTPNotFound from None
    app = request.app
    via = parse_via(request.headers.getall(VIA, []))
    uploads = app.get(UPLOADS)
    look = partial(look_up, hash_part, app[INDEX], app[FINDER], app[COUNTERS], app[SIGNATURES], via)
    found = await (look() if uploads is None else look(uploads.find))
    if found.narinfo is None:
        raise web.HTTPNotFound
    if found.verdict is Verdict.HIT and request.method == hdrs.METH_GET:
        app[FAST_PATH].prefetch_for(found.narinfo)
    return web.Response(body=found.narinfo, headers=_HEADERS)

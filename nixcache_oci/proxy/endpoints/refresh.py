"""``POST /_refresh``: refresh the index now, for instance after a publish."""

import asyncio

from aiohttp import hdrs, web

from nixcache_oci.errors import Error
from nixcache_oci.proxy.app_keys import caches_of
from nixcache_oci.proxy.guard import ALLOW_HEADER, may_change_state


async def post_refresh(request: web.Request) -> web.Response:
    """Refresh, and return the number of narinfos."""
    if not may_change_state(request.headers.get(hdrs.ORIGIN), request.headers.get(ALLOW_HEADER)):
        raise web.HTTPForbidden
    async with caches_of(request) as caches:
        refreshes = [cache.refreshes.refresh() for cache in caches]
        ends = await asyncio.gather(*refreshes, return_exceptions=True)
        errors = [end for end in ends if end is not None]
        for error in errors:
            # The reason is in /_status and in the log.
            if not isinstance(error, (Error, OSError)):
                raise error
        entries = sum(cache.index.entries for cache in caches)
    return web.json_response({"refreshed": not errors, "entries": entries}, status=502 if errors else 200)

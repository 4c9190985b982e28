"""``POST /_refresh``: look at the repository now, for instance right after a publish."""

from aiohttp import hdrs, web

from nixcache_oci.errors import Error
from nixcache_oci.proxy.app_keys import INDEX, REFRESHES
from nixcache_oci.proxy.guard import ALLOW_HEADER, may_change_state


async def post_refresh(request: web.Request) -> web.Response:
    """Refresh, and say how many narinfos are listed then."""
    if not may_change_state(request.headers.get(hdrs.ORIGIN), request.headers.get(ALLOW_HEADER)):
        raise web.HTTPForbidden
    index = request.app[INDEX]
    try:
        await request.app[REFRESHES].refresh()
    except (Error, OSError):
        # Why is in /_status and in the log.
        return web.json_response({"refreshed": False, "entries": index.entries}, status=502)
    return web.json_response({"refreshed": True, "entries": index.entries})

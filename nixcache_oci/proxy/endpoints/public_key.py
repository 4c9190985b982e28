"""``/public-key``: what to put into ``trusted-public-keys``.

Keys are configured, not fetched: without configured ones, it is the key that the cache was first seen with.
"""

from aiohttp import web

from nixcache_oci.proxy.app_keys import CONFIG, INDEX


async def get_public_key(request: web.Request) -> web.Response:
    """Give each key on a line of its own; 404 where none is known."""
    configured = [str(key) for key in request.app[CONFIG].public_keys]
    recorded = request.app[INDEX].state.public_key
    keys = configured or ([recorded] if recorded else [])
    if not keys:
        raise web.HTTPNotFound
    return web.Response(text="".join(f"{key}\n" for key in keys))

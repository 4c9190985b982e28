"""``/public-key``: for ``trusted-public-keys``.

The configured keys, or else the key that the cache was first seen with.
"""

from aiohttp import web

from nixcache_oci.proxy.app_keys import caches_of


async def get_public_key(request: web.Request) -> web.Response:
    """Return one key per line; 404 if none is known."""
    keys: dict[str, None] = {}
    async with caches_of(request) as caches:
        for cache in caches:
            recorded = cache.index.state.public_key
            configured = [str(key) for key in cache.public_keys]
            keys |= dict.fromkeys(configured or ([recorded] if recorded else []))
    if not keys:
        raise web.HTTPNotFound
    return web.Response(text="".join(f"{key}\n" for key in keys))

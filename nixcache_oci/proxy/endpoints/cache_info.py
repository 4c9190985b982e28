"""``/nix-cache-info``: a client's first request; answered from memory, always 200."""

from aiohttp import web

from nixcache_oci.proxy.app_keys import CACHES, CONFIG


async def get_cache_info(request: web.Request) -> web.Response:
    """Return the store dir and the priority."""
    prefix = request.match_info.get("prefix")
    if prefix is not None and not request.app[CACHES].begin(prefix):
        raise web.HTTPNotFound
    config = request.app[CONFIG]
    text = f"StoreDir: {config.store_dir}\nWantMassQuery: 1\nPriority: {config.priority}\n"
    return web.Response(text=text, content_type="text/x-nix-cache-info")

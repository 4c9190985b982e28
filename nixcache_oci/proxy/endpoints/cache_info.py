"""``/nix-cache-info``: what a client asks first. From memory, and always 200."""

from aiohttp import web

from nixcache_oci.proxy.app_keys import CONFIG


async def get_cache_info(request: web.Request) -> web.Response:
    """Tell which store the paths belong to, and how this cache ranks among others."""
    config = request.app[CONFIG]
    text = f"StoreDir: {config.store_dir}\nWantMassQuery: 1\nPriority: {config.priority}\n"
    return web.Response(text=text, content_type="text/x-nix-cache-info")

"""``/_status``: what an operator wants to know, as JSON."""

from aiohttp import web

from nixcache_oci.proxy.snapshot import take_snapshot


async def get_status(request: web.Request) -> web.Response:
    """Show the state of the proxy."""
    return web.json_response(take_snapshot(request.app))

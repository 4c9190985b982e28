"""``/health``: whether the process answers; what it can serve is in ``/_status``."""

from aiohttp import web


async def get_health(_request: web.Request) -> web.Response:
    """Answer ``ok``."""
    return web.Response(text="ok\n")

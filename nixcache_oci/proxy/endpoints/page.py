"""The page for people: ``/`` and ``/<prefix>/`` in a browser, and what they lead to.

It needs no scripts, loads nothing from elsewhere, and can be put into no frame. Other clients than browsers
get what they got before there was a page: 404.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final, TypeAlias

from aiohttp import hdrs, web

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.search import FoundPath, Query, search
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.clients.upstream.peer import UpstreamHealth
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.app_keys import CACHES, PAGES, UPSTREAMS, caches_of
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.page.cache_facts import CacheFacts, conf_lines, flake_lines
from nixcache_oci.proxy.page.path_facts import MOST_SHOWN, gather_path_facts
from nixcache_oci.proxy.page.templates import read_asset
from nixcache_oci.proxy.prefix import LAYOUT_MARK, url_prefix

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    hdrs.CACHE_CONTROL: "no-store",
}
_ASSETS: Final = {"copy.js": "text/javascript", "icon.svg": "image/svg+xml", "style.css": "text/css"}
# On an overview of one cache, or of several.
_FEW_ROOTS: Final = 8
_FEWER_ROOTS: Final = 3
_MOST_ROOTS: Final = 500
_HTML: Final = "text/html"

Catalogs: TypeAlias = list[tuple[OpenedCache, Catalog]]
"""Caches that have an index."""


def page_routes(start: str) -> list[web.RouteDef]:
    """Return the routes at the root, or below a prefix; the last one leads there where a slash is missing."""
    routes = [
        web.get(f"{start}/", get_overview),
        web.get(f"{start}/_path/{{base_name}}", get_path),
        web.get(f"{start}/_roots", get_roots),
    ]
    if start:
        return [*routes, web.get(start, add_slash)]
    # Browsers ask for the second one where a page names none, as JSON does not.
    return [*routes, web.get("/_page/{name}", get_asset), web.get("/favicon.ico", get_asset)]


async def get_overview(request: web.Request) -> web.Response:
    """Return what the caches are, or what a search in them finds."""
    text = request.query.get("q", "").strip()
    return await _respond(request, partial(_search, text=text) if text else _overview)


async def get_path(request: web.Request) -> web.Response:
    """Return what the first cache that has a store path knows of it."""
    return await _respond(request, _path)


async def get_roots(request: web.Request) -> web.Response:
    """Return what keeps the store paths of each cache."""
    return await _respond(request, _roots)


async def get_asset(request: web.Request) -> web.Response:
    """Return the style sheet, the script or the icon."""
    name = request.match_info.get("name", "icon.svg")
    if name not in _ASSETS:
        raise web.HTTPNotFound
    return web.Response(body=read_asset(name), headers=_HEADERS, content_type=_ASSETS[name], charset="utf-8")


async def add_slash(request: web.Request) -> web.Response:
    """Lead a browser from a substituter's address to its page."""
    _require_browser(request)
    if not request.app[CACHES].begin(request.match_info["prefix"]):
        raise web.HTTPNotFound
    last = request.rel_url.raw_path.rpartition("/")[2]
    # With a dot first, for a part with a colon would be taken for a scheme.
    headers = {**_HEADERS, hdrs.LOCATION: f"./{last}/"}
    return web.Response(status=HTTPStatus.TEMPORARY_REDIRECT, headers=headers)


def _require_browser(request: web.Request) -> None:
    if _HTML not in ",".join(request.headers.getall(hdrs.ACCEPT, [])).lower():
        raise web.HTTPNotFound


async def _respond(
    request: web.Request, write: "Callable[[_Here, Catalogs], Awaitable[web.Response]]"
) -> web.Response:
    """Write a page about the caches that a request is for; those that have an index are handed in."""
    _require_browser(request)
    try:
        async with caches_of(request) as caches:
            catalogs = [
                (cache, catalog)
                for cache in caches
                # One that this request opened is waited for.
                if (catalog := await cache.index.current()) is not None and not cache.index.is_absent
            ]
            if catalogs or caches[0] in request.app[CACHES].configured:
                return await write(_Here(request, caches), catalogs)
    except web.HTTPNotFound:
        pass
    return await _Here(request, ()).respond_not_found("No cache that everybody may read has this name.")


async def _overview(here: "_Here", catalogs: Catalogs) -> web.Response:
    roots = [
        (here.home(cache), (await here.pages.keepers.of(cache, catalog)).roots) for cache, catalog in catalogs
    ]
    facts = here.facts
    few = _FEW_ROOTS if len(facts) == 1 else _FEWER_ROOTS
    return await here.respond(
        "overview",
        caches=facts,
        conf="\n".join(conf_lines(here.url, facts)),
        flake="\n".join(flake_lines(here.url, facts[0])) if here.is_named_everywhere else None,
        roots=[(home, of_cache[:few]) for home, of_cache in roots if of_cache],
        upstreams=here.upstreams,
    )


async def _path(here: "_Here", catalogs: Catalogs) -> web.Response:
    name = here.request.match_info["base_name"]
    try:
        hash_part = HashPart(name.partition("-")[0])
    except FormatError:
        return await here.respond_not_found(f"“{name}” is not a store path.")
    for cache, catalog in catalogs:
        text = catalog.find(hash_part)
        if text is not None:
            keys = cache.public_keys or _recorded_keys(cache)
            keepers = await here.pages.keepers.of(cache, catalog)
            facts = await here.pages.jobs.run(gather_path_facts(catalog, NarInfo.parse(text), keys, keepers))
            home = here.home(cache)
            return await here.respond("path", path=facts, home=home, cache_name=cache.repository.name)
    return await here.respond_not_found(f"“{name}” is not listed here, or no configured key signed it.")


async def _roots(here: "_Here", catalogs: Catalogs) -> web.Response:
    keepers = [
        (cache.repository.name, here.home(cache), await here.pages.keepers.of(cache, catalog))
        for cache, catalog in catalogs
    ]
    return await here.respond("roots", keepers=keepers, most=_MOST_ROOTS)


async def _search(here: "_Here", catalogs: Catalogs, text: str) -> web.Response:
    query = Query.parse(text)
    found: list[tuple[FoundPath, str, str]] = []
    is_all = True
    for cache, catalog in catalogs:
        findings = await here.pages.jobs.run(search(catalog, query, MOST_SHOWN))
        is_all &= findings.is_all
        found += ((one, here.home(cache), cache.repository.name) for one in findings.paths)
    if len(catalogs) > 1:
        found.sort(key=lambda one: one[0].published or EPOCH, reverse=True)
    is_all &= len(found) <= MOST_SHOWN
    return await here.respond("search", query=text, found=found[:MOST_SHOWN], is_all=is_all)


def _recorded_keys(cache: OpenedCache) -> tuple[PublicKey, ...]:
    """Return the key that a cache names itself: signatures by it are right or wrong, but nobody vouches."""
    recorded = cache.index.state.public_key
    try:
        return (PublicKey.parse(recorded),) if recorded is not None else ()
    except FormatError:
        return ()


class _Here:
    """Where a page is: links are relative to that, so that a web server may put the whole below a path."""

    def __init__(self, request: web.Request, caches: Sequence[OpenedCache]) -> None:
        self.request = request
        self.pages = request.app[PAGES]
        self._caches = caches
        self._is_root = "prefix" not in request.match_info
        self._top = "../" * (request.rel_url.raw_path.count("/") - 1) or "./"

    @property
    def facts(self) -> list[CacheFacts]:
        """Of all its caches."""
        return [CacheFacts.of(cache, self.home(cache)) for cache in self._caches]

    @property
    def upstreams(self) -> list[UpstreamHealth]:
        """How those are doing that are asked for what the root has not; below a prefix none are."""
        return self.request.app[UPSTREAMS].health() if self._is_root else []

    @property
    def url(self) -> str:
        """For the client's nix.conf."""
        host = self.request.headers.get(hdrs.HOST, "127.0.0.1")
        below = "" if self._is_root else f"/{self._prefix(self._caches[0])}"
        return f"{self.request.scheme}://{host}{below}"

    @property
    def is_named_everywhere(self) -> bool:
        """Whether the same URL leads to the same cache on other machines: no root does, and no folder."""
        return not self._is_root and not self._prefix(self._caches[0]).startswith(LAYOUT_MARK)

    def home(self, cache: OpenedCache) -> str:
        """Return the way to the page of a cache."""
        is_alone = self._is_root and len(self._caches) == 1
        return self._top if is_alone or cache.prefix is None else f"{self._top}{self._prefix(cache)}/"

    async def respond(
        self, template: str, status: HTTPStatus = HTTPStatus.OK, **values: object
    ) -> web.Response:
        """Write a page."""
        one = self._caches[0] if len(self._caches) == 1 else None
        shared = {
            "top": self._top,
            "own": self.home(one) if one is not None else self._top,
            "query": "",
            "is_overview": template == "overview",
            "cache_title": one.repository.name if one is not None and not self._is_root else None,
        }
        text = await self.pages.templates.render(template, {**shared, **values})
        return web.Response(status=status, text=text, content_type=_HTML, headers=_HEADERS)

    async def respond_not_found(self, reason: str) -> web.Response:
        """Write a page that says that there is nothing here."""
        return await self.respond("nothing", HTTPStatus.NOT_FOUND, reason=reason)

    def _prefix(self, cache: OpenedCache) -> str:
        return url_prefix(cache.prefix) if cache.prefix is not None else self.request.match_info["prefix"]

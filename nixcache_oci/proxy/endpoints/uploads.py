"""``PUT`` of all that ``nix copy --to`` sends; ``POST /mass-query`` and ``/_login``."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Final

from aiohttp import ClientError, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from nixcache_oci.cache.nar_url import SUFFIXES
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.clients.binary_cache.source import MAX_NARINFO_BYTES
from nixcache_oci.clients.http.content_coding import CodingError, Decoder, is_coded
from nixcache_oci.errors import FormatError
from nixcache_oci.nix import base32
from nixcache_oci.nix.nar_check import can_unpack
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.app_keys import CACHES, CONNECTIONS, COUNTERS, caches_of
from nixcache_oci.proxy.front.aiohttp_protocol import connection_of
from nixcache_oci.proxy.guard import SITE_HEADER
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.uploads.interface import UploadRefusedError
from nixcache_oci.proxy.uploads.uploads import Uploads
from nixcache_oci.wording import counted

_log = logging.getLogger(__name__)

STALL_SECONDS: Final = 300.0
"""Limit of waiting for the next bytes of a body."""

MOST_DROPPED_BYTES: Final = 256 * 1024 * 1024
"""Limit of one file that is accepted and not kept; a log may be large."""

MOST_QUERY_BYTES: Final = 1024 * 1024
"""Limit of a mass query: 30,000 hash parts."""

_Handler = Callable[[web.Request, "_Body", str], Awaitable[web.Response]]

_COMPRESSIONS: Final = {suffix: compression for compression, suffix in SUFFIXES.items()}
_NAR_NAME: Final = re.compile(rf"(?:([0-9a-f]{{64}})|({base32.CHARACTER}{{52}}))\.nar(\.[A-Za-z0-9]+)?")
_DROPPED: Final = (
    "/{name:[^/]+}.ls",
    "/log/{name:.+}",
    "/debuginfo/{name:.+}",
    "/realisations/{name:.+}",
    "/build-trace-v2/{name:.+}",
)


class _StalledError(UploadRefusedError):
    """A body stopped coming: there is nothing to wait for."""


def upload_routes(start: str) -> list[web.RouteDef]:
    """Return the routes of uploads, below the start of their paths."""

    def put(path: str, handler: _Handler) -> web.RouteDef:
        async def handle(request: web.Request) -> web.Response:
            writer, body = await _check_writer(request), _Body(request)
            try:
                return await handler(request, body, writer)
            except _StalledError:
                raise
            except UploadRefusedError:
                await body.drop()
                raise

        return _route(hdrs.METH_PUT, start + path, handle)

    return [
        put("/{hash_part:[^/]+}.narinfo", put_narinfo),
        put("/nar/{name:[^/]+}", put_nar),
        *([] if start else [_route(hdrs.METH_POST, "/_login", post_login)]),
        put("/nix-cache-info", put_dropped),
        *(put(path, put_dropped) for path in _DROPPED),
        *(web.get(start + path, get_dropped) for path in _DROPPED),
    ]


def _route(method: str, path: str, handler: Callable[[web.Request], Awaitable[web.Response]]) -> web.RouteDef:
    # 100 Continue is sent when it is known who writes.
    return web.route(method, path, handler, expect_handler=_wait)


def parse_nar_name(name: str) -> tuple[str, str] | None:
    """Read ``<hash>.nar<suffix>``, the hash in hex or nix32: FileHash in hex, and the suffix."""
    match = _NAR_NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return match[1] or base32.decode(match[2]).hex(), match[3] or ""
    except FormatError:
        return None


async def put_nar(request: web.Request, body: "_Body", _writer: str) -> web.Response:
    """Take a compressed NAR; its narinfo comes later."""
    parsed = parse_nar_name(request.match_info["name"])
    compression = _COMPRESSIONS.get(parsed[1]) if parsed is not None else None
    if parsed is None or compression is None:
        raise UploadRefusedError(
            "a NAR is uploaded to nar/<FileHash>.nar, with the suffix of its compression"
        )
    if not can_unpack(compression):
        raise UploadRefusedError(
            f"{compression} is not unpacked here: compress with zstd, xz, bzip2, or none"
        )
    size = request.content_length
    if size is None:
        raise UploadRefusedError("the request has no Content-Length", HTTPStatus.LENGTH_REQUIRED)
    if is_coded(request.headers.get(hdrs.CONTENT_ENCODING, "")):
        raise UploadRefusedError("a NAR is uploaded without Content-Encoding")
    uploads = _uploads_of(request)
    most = uploads.settings.most_nar_bytes
    if size == 0 or (most is not None and size > most):
        text = (
            "the file is empty"
            if size == 0
            else f"the registry takes no file over {counted(most or 0, 'byte')}"
        )
        raise UploadRefusedError(text, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    await uploads.spool.take_nar(body.chunks(), size, parsed[0], compression)
    return web.Response()


async def put_narinfo(request: web.Request, body: "_Body", writer: str) -> web.Response:
    """Take a narinfo; 200 once it and its NAR are on the disk."""
    try:
        hash_part = HashPart.parse(request.match_info["hash_part"])
    except FormatError as error:
        raise UploadRefusedError(str(error)) from None
    text = await body.read(MAX_NARINFO_BYTES)
    uploads = _uploads_of(request)
    if await uploads.receiver.take(hash_part, text):
        path = uploads.spool.paths.get(hash_part)
        uploads.batches.note(path.nar.measured.file_size if path is not None and path.nar is not None else 0)
        _log.info("uploaded", extra={"fields": {"hash_part": hash_part, "writer": writer}})
    return web.Response()


async def get_dropped(_request: web.Request) -> web.Response:
    """Say that it is not kept."""
    raise web.HTTPNotFound


async def put_dropped(request: web.Request, body: "_Body", _writer: str) -> web.Response:
    """Accept what is not kept: refused, it would end the copy."""
    size = 0
    async for chunk in body.chunks():
        size += len(chunk)
        if size > MOST_DROPPED_BYTES:
            raise UploadRefusedError("the file is too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    dropped = _uploads_of(request).dropped
    below = request.path.removeprefix(f"/{request.match_info.get('prefix', '')}").strip("/")
    kind = below.partition("/")[0] if not below.endswith(".ls") else ".ls"
    if kind not in dropped:
        dropped.add(kind)
        _log.warning("uploads of this kind are accepted, and not kept", extra={"fields": {"kind": kind}})
    return web.Response()


async def post_login(request: web.Request) -> web.Response:
    """Tell who may upload with this request's credentials; a JSON Web Token becomes a password."""
    _refuse_web_pages(request)
    login = await _uploads_of(request).writers.log_in(request)
    body = {"writer": login.writer, "expires_at": login.expires_at, "password": login.password}
    return web.json_response(body, headers={hdrs.CACHE_CONTROL: "no-store"})


async def post_mass_query(request: web.Request) -> web.Response:
    """Answer which of these hash parts, one per line, this cache has; upstreams are not asked."""
    text = (await _Body(request).read(MOST_QUERY_BYTES)).decode(errors="replace")
    parts = []
    for number, line in enumerate(text.split()):
        if number % 1000 == 999:  # noqa: PLR2004  # other requests have their turn
            await asyncio.sleep(0)
        try:
            part = HashPart.parse(line)
        except FormatError as error:
            raise UploadRefusedError(str(error)) from None
        parts.append(part)
    present = []
    async with caches_of(request) as caches:
        for number, part in enumerate(parts):
            if number % 1000 == 999:  # noqa: PLR2004  # other requests have their turn
                await asyncio.sleep(0)
            if any(_has_path(cache, part) for cache in caches):
                present.append(f"{part}\n")
    return web.Response(text="".join(present))


def _has_path(cache: OpenedCache, hash_part: HashPart) -> bool:
    """Tell whether a cache has a path, or it is uploaded to it."""
    is_spooled = cache.uploads is not None and cache.uploads.find(hash_part) is not None
    return is_spooled or cache.find(HashPartBytes(hash_part.encode())) is not None


async def _check_writer(request: web.Request) -> str:
    _refuse_web_pages(request)
    return await _uploads_of(request).writers.check(request)


def uploads_at_root(caches: Iterable[OpenedCache]) -> OpenedCache | None:
    """Return the cache that takes what is uploaded to the root: the first that takes any."""
    return next((cache for cache in caches if cache.uploads is not None), None)


def _uploads_of(request: web.Request) -> Uploads:
    """Return what takes the uploads below a request's prefix; UploadRefusedError if nothing does."""
    caches, prefix = request.app[CACHES], request.match_info.get("prefix")
    # A cache that is not configured is not opened for this.
    cache = uploads_at_root(caches.configured) if prefix is None else caches.at(prefix.encode())
    if cache is None or cache.uploads is None:
        raise UploadRefusedError("this cache takes no uploads here", HTTPStatus.METHOD_NOT_ALLOWED)
    return cache.uploads


def _refuse_web_pages(request: web.Request) -> None:
    if hdrs.ORIGIN in request.headers or SITE_HEADER in request.headers:
        raise UploadRefusedError("a web page must not upload", HTTPStatus.FORBIDDEN)


async def _wait(_request: web.Request) -> None:
    """Send no 100 Continue yet."""


class _Body:
    """The body of a request."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._is_awaited = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"

    async def read(self, most_bytes: int) -> bytes:
        """Read a small body, decoded; UploadRefusedError if it is larger, or malformed."""
        coding = self._request.headers.get(hdrs.CONTENT_ENCODING, "")
        try:
            decoder = Decoder(coding) if is_coded(coding) else None
            body = bytearray()
            async for chunk in self.chunks():
                for piece in decoder.feed(chunk) if decoder is not None else [chunk]:
                    body += piece
                    if len(body) > most_bytes:
                        raise UploadRefusedError(
                            f"the body is over {counted(most_bytes, 'byte')}",
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        )
            if decoder is not None:
                decoder.end()
        except CodingError as error:
            raise UploadRefusedError(str(error)) from None
        return bytes(body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield it as it arrives, or what was not yielded before.

        Raises ConnectionError if it breaks off, UploadRefusedError if nothing comes for ``STALL_SECONDS``.
        """
        request = self._request
        if self._is_awaited:
            self._is_awaited = False
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        connection, connections = connection_of(request), request.app[CONNECTIONS]
        content = request.content
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    chunk = await content.readany()
            except TimeoutError:
                raise _StalledError(f"nothing came for {STALL_SECONDS:g} s") from None
            except (ClientError, HttpProcessingError) as error:
                raise ConnectionResetError(f"the body broke off: {error}") from None
            if not chunk:
                return
            connections.hold(connection, max(0, connection.held_bytes - len(chunk)))
            request.app[COUNTERS].uploaded_bytes += len(chunk)
            yield chunk

    async def drop(self) -> None:
        """Read the rest, where it is on its way: if Nix is cut while it sends, it tries again, or hangs."""
        if not self._is_awaited:
            async for _ in self.chunks():
                pass

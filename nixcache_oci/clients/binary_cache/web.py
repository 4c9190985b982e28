"""A binary cache behind a web server, which cannot be listed.

Requests for narinfos are retried a few times; a NAR that breaks off is resumed if the server can do that.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

from yarl import URL

from nixcache_oci.clients.binary_cache.source import CACHE_INFO
from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.fresh import AGAIN_SECONDS
from nixcache_oci.clients.http.reply import Reply, Timeouts
from nixcache_oci.clients.upstream.address import Upstream, below_base, nar_url
from nixcache_oci.clients.upstream.nar_stream import (
    ABSENT_STATUSES,
    NarBody,
    NarHead,
    open_part,
    range_headers,
)
from nixcache_oci.clients.upstream.narinfo_client import read_narinfo
from nixcache_oci.clients.upstream.rules import NAME_SECONDS, ask, uniform_timeouts, upstream_errors
from nixcache_oci.errors import FormatError, UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.store_path import HashPart

_OK: Final = 200
_CONNECT_SECONDS: Final = 15.0
_STALL_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 30.0  # for a whole narinfo
_MOST_TOTAL_BYTES: Final = 128 * 1024 * 1024  # of all narinfos, some 200,000: references may never end
_NAR_SECONDS: Final = 300.0  # for a NAR's head, and for its first byte, as Nix itself waits
_LIMITS: Final = uniform_timeouts(_ANSWER_SECONDS)
_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0)

T = TypeVar("T")


class WebCache:
    """Reads one binary cache over HTTP; methods need a running event loop.

    It pauses for ``pauses_seconds`` before each retry of a narinfo, and for the first before a NAR is
    resumed.
    """

    def __init__(self, upstream: Upstream, pauses_seconds: tuple[float, ...] = _PAUSES_SECONDS) -> None:
        self._upstream = upstream
        self._pauses = pauses_seconds
        self._http = HttpClient(
            _LIMITS, connect_seconds=_CONNECT_SECONDS, connect_seconds_in_all=NAME_SECONDS + _CONNECT_SECONDS
        )
        self._total_bytes = 0

    @property
    def name(self) -> str:
        """Its base URL, without credentials."""
        return str(self._upstream).rstrip("/")

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def read_info(self) -> bytes | None:
        """Read its nix-cache-info; None if it has none, UpstreamError if it did not answer."""
        return await self._read(CACHE_INFO)

    async def list_names(self) -> None:
        """Return None: it cannot be listed."""

    async def read_narinfo(self, hash_part: HashPart) -> bytes | None:
        """Read a narinfo; None if there is none.

        Raises UpstreamError if there is no usable answer, or all narinfos together are too large.
        """
        content = await self._read(f"{hash_part}.narinfo")
        self._total_bytes += len(content or b"")
        if self._total_bytes > _MOST_TOTAL_BYTES:
            raise UpstreamError(
                f"{self.name}: its narinfos have over {_MOST_TOTAL_BYTES} bytes in total;"
                " import fewer paths at a time"
            )
        return content

    @asynccontextmanager
    async def open_nar(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the file at a narinfo's URL; UpstreamError for no usable answer, or one that broke off.

        Raises UpstreamNotFoundError if it is missing, or in another cache.
        """
        address = self._locate(url)

        async def open_from(start: int, end: int | None, validator: str) -> tuple[Reply, NarHead]:
            seconds = _STALL_SECONDS if start else _NAR_SECONDS
            limits = Timeouts(seconds, seconds, _STALL_SECONDS, AGAIN_SECONDS)
            wanted = range_headers(start, end, validator)
            return await open_part(self._http, self._upstream, address, limits, start, end, wanted)

        reply, head = await open_from(0, None, "")
        body = NarBody(self._upstream, reply, head, open_from, self._pauses[0], _STALL_SECONDS)
        try:
            async with aclosing(body.chunks()) as chunks:
                yield chunks
        finally:
            body.close()

    def _locate(self, url: str) -> URL:
        try:
            relative = below_base(url, self._upstream)
            if relative is None:
                raise UpstreamNotFoundError(f"{self.name}: {url[:200]} is in another cache")
            path, _, query = relative.partition("?")
            return nar_url(self._upstream, path, query)
        except FormatError as error:
            raise UpstreamNotFoundError(f"{self.name}: {error}") from None

    async def _read(self, path: str) -> bytes | None:
        async def read() -> bytes | None:
            with upstream_errors(self._upstream):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    address = self._upstream.at(path)
                    reply = await ask(self._http, self._upstream, "GET", address, _LIMITS, headers={})
                    body = await read_narinfo(self._upstream, reply)
            if reply.status in ABSENT_STATUSES:
                return None
            if reply.status != _OK:
                raise UpstreamError(f"{self.name}: {path}: status {reply.status}")
            return body

        return await self._patiently(read)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, and retry if there was no usable answer."""
        for pause in self._pauses:
            try:
                return await ask()
            except UpstreamNotFoundError:
                raise
            except UpstreamError:
                await asyncio.sleep(pause)
        return await ask()

"""HTTP as this client uses it: one request goes out, one answer comes back, or TroubleError is raised.

Redirects are followed here and not by aiohttp, because three things must hold: Authorization goes to the
origin that it was meant for and nowhere else, a signed URL is passed on byte for byte, and https never
becomes http. There is no limit on total time, for a blob may be large; there are limits on standing still.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import aiohttp
from yarl import URL

from nixcache_oci.clients.http.proxy import find_proxy
from nixcache_oci.clients.http.tls import tls_context
from nixcache_oci.clients.registry.approach import Approach, Storage
from nixcache_oci.clients.registry.body import Body
from nixcache_oci.clients.registry.breakage import translated
from nixcache_oci.clients.registry.pace import Pace
from nixcache_oci.clients.registry.redirect import is_redirect, join
from nixcache_oci.clients.registry.retry import Failure
from nixcache_oci.clients.registry.trouble import TroubleError

_CONNECT_SECONDS = 10
_MOST_REDIRECTS = 5
_DRAINED_BYTES = 64 * 1024
_READ_BUFFER_BYTES = 256 * 1024
_transports: ContextVar[list[asyncio.Transport]] = ContextVar("transports")  # of the upload in this task
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "nixcache-oci"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        method: of HTTP.
        url: already encoded as it is to be sent.
        headers: without Authorization.
        body: or None.
        follows: whether redirects are followed.
        is_elsewhere: whether the URL is already that of a server which the registry sent us to.
    """

    method: str
    url: URL
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    follows: bool = True
    is_elsewhere: bool = False


class Reply:
    """An answer whose body is still to be read. Close it; what was not read costs its connection.

    Args:
        response: of aiohttp.
        is_elsewhere: as below.
        transports: those that the request's body went to.
        stall_seconds: how long the answer's body may stand still, where the connection has no such limit.

    Attributes:
        status: of HTTP.
        headers: of the answer; names are compared without case.
        is_elsewhere: whether a server gave it that the registry sent us to.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        is_elsewhere: bool,
        transports: Sequence[asyncio.Transport] = (),
        stall_seconds: float | None = None,
    ) -> None:
        self._response = response
        self._stall_seconds = stall_seconds
        self._transports = transports
        self.status = response.status
        self.headers = response.headers
        self.is_elsewhere = is_elsewhere

    async def read(self, limit: int) -> bytes:
        """Read the body, up to ``limit`` bytes; more of it is left out.

        Raises:
            TroubleError: the connection broke or stalled.
        """
        content = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) >= limit:
                    break
        return bytes(content[:limit])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes.

        Raises:
            TroubleError: the connection broke or stalled.
        """
        content = self._response.content
        while True:
            with translated():
                async with asyncio.timeout(self._stall_seconds):
                    # As it was received: to join what came meanwhile would copy all of it once more.
                    chunk, is_end_of_part = await content.readchunk()
            if chunk:
                yield chunk
            elif not is_end_of_part or content.at_eof():  # the library has one reader for all empty bodies
                return

    def close(self) -> None:
        """Give the connection back, or end it where the body was not read to its end.

        A refusal may come while the request's own body is still on its way; that connection is aborted, since
        closing it would wait for a peer that has stopped reading.
        """
        self._response.close()
        for transport in self._transports:
            if transport.get_write_buffer_size():
                transport.abort()


class Wire:
    """The connections to one registry and to where it redirects; opened in the loop that first uses them.

    Args:
        stall_seconds: how long a connection may stand still, in either direction.
        allows_http: whether plain http may be spoken at all.

    Attributes:
        storage: where the registry redirects requests for blobs to.
    """

    def __init__(self, *, stall_seconds: float, allows_http: bool) -> None:
        self._stall_seconds = stall_seconds
        self._allows_http = allows_http
        self._session: aiohttp.ClientSession | None = None
        self.storage = Storage(self._connect)

    async def close(self) -> None:
        """End all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(
        self, request: Request, authorization: str | None, approach: Approach | None = None
    ) -> Reply:
        """Send a request and follow its redirects.

        Args:
            request: what to ask.
            authorization: value of the Authorization header; goes to the origin of the request's URL only,
                and not where that is elsewhere.
            approach: hears where the request goes.

        Raises:
            TroubleError: no answer came, or a redirect is refused.
        """
        url = request.url
        is_elsewhere = request.is_elsewhere
        for _ in range(_MOST_REDIRECTS + 1):
            if url.scheme != "https" and not (self._allows_http and url.scheme == "http"):
                raise _final(f"refused to go to {_show(url)}: only https is used with this registry")
            if approach is not None:
                await approach.arrive(url.origin())
            reply = await self._send_once(
                request, url, None if is_elsewhere else authorization, is_elsewhere=is_elsewhere
            )
            if not (request.follows and is_redirect(request.method, reply.status)):
                return reply
            await _drain(reply)
            target = join(url, reply.headers.get("Location", ""))
            # Once away, always away: a foreign host may not point the token at a path of its choice.
            is_elsewhere = is_elsewhere or target.origin() != request.url.origin()
            if target.scheme == "http" and url.scheme == "https":
                raise _final(f"refused the redirect from {_show(url)} to {_show(target)}: it is not https")
            url = target
        raise _final(f"more than {_MOST_REDIRECTS} redirects, the last one to {_show(url)}")

    async def _send_once(
        self, request: Request, url: URL, authorization: str | None, *, is_elsewhere: bool
    ) -> Reply:
        headers = {**_HEADERS, **request.headers}
        if authorization is not None:
            headers["Authorization"] = authorization
        with translated():
            send = self._prepare(request.method, url, headers)
            if request.body is None:
                return Reply(await send(), is_elsewhere=is_elsewhere)
            headers["Content-Length"] = str(request.body.size)
            with closing(request.body.pieces()) as pieces, _aborting() as transports:
                pace = Pace(request.body.size, self._stall_seconds, transports)
                async with pace.limited():
                    response = await send(data=pace.pass_on(pieces), timeout=self._timeout(None))
            return Reply(
                response,
                is_elsewhere=is_elsewhere,
                transports=transports,
                stall_seconds=self._stall_seconds,
            )

    async def _connect(self, origin: URL) -> aiohttp.connector.Connection | None:
        session = self._open_session()
        if session.connector is None or find_proxy(origin) is not None:
            return None  # an HTTP proxy opens connections of its own
        request = aiohttp.ClientRequest("GET", origin, loop=asyncio.get_running_loop(), session=session)
        return await session.connector.connect(request, [], session.timeout)

    def _prepare(
        self, method: str, url: URL, headers: dict[str, str]
    ) -> Callable[..., Awaitable[aiohttp.ClientResponse]]:
        """Choose session and proxy; the headers may still grow."""
        proxy = find_proxy(url)
        proxy_headers = None
        if proxy is not None and proxy.authorization is not None:
            proxy_headers = {"Proxy-Authorization": proxy.authorization}
            if url.scheme == "http":  # no tunnel: the proxy reads the request itself
                headers |= proxy_headers
        return partial(
            self._open_session().request,
            method,
            url,
            headers=headers,
            allow_redirects=False,
            proxy=proxy.url if proxy else None,
            proxy_headers=proxy_headers,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No limit: one stands behind each client that reads slowly, and nobody may wait for that one.
                # Whoever asks for much at once bounds it.
                connector=aiohttp.TCPConnector(limit=0, ssl=tls_context()),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout(self._stall_seconds),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER_BYTES,
                request_class=_TellingRequest,
                trust_env=False,
            )
        return self._session

    def _timeout(self, read_seconds: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=read_seconds)


class _TellingRequest(aiohttp.ClientRequest):
    """Tells which connection it goes to."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        if conn.transport is not None:
            _transports.get([]).append(conn.transport)
        return await super().send(conn)


@contextmanager
def _aborting() -> Iterator[list[asyncio.Transport]]:
    """Abort the connection of an upload that fails; closing it would wait until the peer takes the rest.

    Yields the transports that the upload uses.
    """
    transports: list[asyncio.Transport] = []
    token = _transports.set(transports)
    try:
        yield transports
    except BaseException:
        for transport in transports:
            transport.abort()
        raise
    finally:
        _transports.reset(token)


async def _drain(reply: Reply) -> None:
    """Read a redirect's few bytes of body, so that its connection can be used again."""
    try:
        await reply.read(_DRAINED_BYTES)
    finally:
        reply.close()


def _final(reason: str) -> TroubleError:
    return TroubleError(Failure(None), reason, is_final=True)


def _show(url: URL) -> str:
    """Name a URL by its origin: path and query may be signed."""
    return str(url.origin())

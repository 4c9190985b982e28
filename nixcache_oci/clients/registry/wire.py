"""HTTP as this client uses it: one request goes out, one answer comes back, or TroubleError is raised.

Redirects are followed here and not by aiohttp, because three things must hold: Authorization goes to the
origin that it was meant for and nowhere else, a signed URL is passed on byte for byte, and https never
becomes http. There is no limit on total time, for a blob may be large; there are limits on the wait for an
answer's head, on standing still, and on coming too slowly.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import aiohttp
from yarl import URL

from nixcache_oci.clients.http.errors import Failure, TroubleError, translated
from nixcache_oci.clients.http.fresh import SILENT_SECONDS, Freshness, send_fresh
from nixcache_oci.clients.http.proxy import find_proxy
from nixcache_oci.clients.http.public_address import (
    IsPublic,
    guard_sockets,
    is_known_private,
    is_public,
    spells_private,
)
from nixcache_oci.clients.http.reply import Reply
from nixcache_oci.clients.http.session import GuardedRequest, open_session, peer_of, tls_context
from nixcache_oci.clients.http.upload import Body, Pace
from nixcache_oci.clients.registry.preconnect import Approach, Storage
from nixcache_oci.clients.registry.redirect import is_redirect, join

_BLOB_STALLS = 10  # a blob's head may take as long as Nix waits: 300 s
_DOCUMENT_TRIES = 3  # in the time that the head of anything else may take
_CONNECT_SECONDS = 10  # to one address
_CONNECT_SECONDS_IN_ALL = 30  # to a name's addresses one after another, and through an HTTP proxy
_MOST_REDIRECTS = 5
_DRAINED_BYTES = 64 * 1024
_transports: ContextVar[list[asyncio.Transport]] = ContextVar("transports")  # of the upload in this task


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
        is_guarded: whether it may go to public addresses only, since an answer from such a one named the URL.
        is_blob: whether a blob is asked for, which storage may have to fetch first.
    """

    method: str
    url: URL
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    follows: bool = True
    is_elsewhere: bool = False
    is_guarded: bool = False
    is_blob: bool = False


class Wire:
    """The connections to one registry and to where it redirects; opened in the loop that first uses them.

    Args:
        stall_seconds: how long a connection may stand still, in either direction.
        allows_http: whether plain http may be spoken at all.
        is_public: judges IP addresses. Once an answer came from a public one, whatever it leads to must be
            public as well: it may not reach through us what stands inside.

    Attributes:
        storage: where the registry redirects requests for blobs to.
    """

    def __init__(self, *, stall_seconds: float, allows_http: bool, is_public: IsPublic = is_public) -> None:
        self._stall_seconds = stall_seconds
        self._allows_http = allows_http
        self._is_public = is_public
        self._freshness = Freshness()
        self._session: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None  # its connections lead to public addresses only
        self.storage = Storage(self._connect)

    async def close(self) -> None:
        """End all connections."""
        sessions = (self._session, self._guarded)
        self._session = self._guarded = None
        for session in sessions:
            if session is not None:
                await session.close()

    async def send(
        self, request: Request, authorization: str | None, approach: Approach | None = None
    ) -> Reply:
        """Send a request and follow its redirects.

        Without a body, all heads together take no longer than a connection may stand still, those of a blob
        ten times as long; an upload is limited by its progress.

        Args:
            request: what to ask.
            authorization: value of the Authorization header; goes to the origin of the request's URL only,
                and not where that is elsewhere.
            approach: hears where the request goes.

        Raises:
            TroubleError: no answer came, or a redirect is refused.
        """
        seconds = self._head_seconds(request) if request.body is None else None
        limit = asyncio.timeout(seconds)
        try:
            with translated():
                async with limit:
                    return await self._follow(request, authorization, approach)
        except TroubleError:
            if limit.expired():
                reason = f"no answer within {seconds:.0f} s: the connection stood still or was too slow"
                raise TroubleError(Failure(None), reason) from None
            raise

    async def _follow(self, request: Request, authorization: str | None, approach: Approach | None) -> Reply:
        url = request.url
        is_elsewhere = request.is_elsewhere
        is_guarded = request.is_guarded
        for _ in range(_MOST_REDIRECTS + 1):
            if url.scheme != "https" and not (self._allows_http and url.scheme == "http"):
                raise _final(f"refused to go to {_show(url)}: only https is used with this registry")
            if is_guarded and spells_private(url, self._is_public):
                raise _final(
                    f"refused to go to the private address {_show(url)}, which a server at a public one named"
                )
            if approach is not None:
                await approach.arrive(url.origin(), is_guarded=is_guarded)
            reply = await self._send_once(
                request,
                url,
                None if is_elsewhere else authorization,
                is_elsewhere=is_elsewhere,
                is_guarded=is_guarded,
            )
            if not (request.follows and is_redirect(request.method, reply.status)):
                return reply
            await _drain(reply)
            target = join(url, reply.headers.get("Location", ""))
            # Once away, always away: a foreign host may not point the token at a path of its choice.
            is_elsewhere = is_elsewhere or target.origin() != request.url.origin()
            is_guarded = is_guarded or reply.is_public
            if target.scheme == "http" and url.scheme == "https":
                raise _final(f"refused the redirect from {_show(url)} to {_show(target)}: it is not https")
            url = target
        raise _final(f"more than {_MOST_REDIRECTS} redirects, the last one to {_show(url)}")

    async def _send_once(
        self, request: Request, url: URL, authorization: str | None, *, is_elsewhere: bool, is_guarded: bool
    ) -> Reply:
        headers = dict(request.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        send = self._prepare(request.method, url, headers, is_guarded=is_guarded)
        if request.body is None:
            head_seconds = self._head_seconds(request)
            # Of a NAR the first byte may take as long as its head; the reply is stricter with all others.
            again = max(SILENT_SECONDS, self._stall_seconds / (1 if request.is_blob else _DOCUMENT_TRIES))
            response = await send_fresh(
                self._freshness, partial(send, timeout=self._timeout(head_seconds)), again_seconds=again
            )
            return self._reply(response, url, is_elsewhere=is_elsewhere)
        headers["Content-Length"] = str(request.body.size)
        with closing(request.body.pieces()) as pieces, _aborting() as transports:
            pace = Pace(request.body.size, self._stall_seconds, transports)
            async with pace.limited():
                response = await send(data=pace.pass_on(pieces), timeout=self._timeout(None))
        return self._reply(response, url, is_elsewhere=is_elsewhere, transports=transports)

    def _head_seconds(self, request: Request) -> float:
        return self._stall_seconds * (_BLOB_STALLS if request.is_blob else 1)

    def _reply(
        self,
        response: aiohttp.ClientResponse,
        url: URL,
        *,
        is_elsewhere: bool,
        transports: Sequence[asyncio.Transport] = (),
    ) -> Reply:
        return Reply(
            response,
            is_elsewhere=is_elsewhere,
            is_public=not is_known_private(peer_of(response), url, self._is_public),
            window_seconds=self._stall_seconds,
            transports=transports,
        )

    async def _connect(self, origin: URL, is_guarded: bool) -> aiohttp.connector.Connection | None:
        session = self._open_guarded() if is_guarded else self._open_session()
        if session.connector is None or find_proxy(origin) is not None:
            return None  # an HTTP proxy opens connections of its own
        request = aiohttp.ClientRequest("GET", origin, loop=asyncio.get_running_loop(), session=session)
        return await session.connector.connect(request, [], session.timeout)

    def _prepare(
        self, method: str, url: URL, headers: dict[str, str], *, is_guarded: bool
    ) -> Callable[..., Awaitable[aiohttp.ClientResponse]]:
        """Choose session and proxy; the headers may still grow."""
        proxy = find_proxy(url)
        proxy_headers = None
        if proxy is not None and proxy.authorization is not None:
            proxy_headers = {"Proxy-Authorization": proxy.authorization}
            if url.scheme == "http":  # no tunnel: the proxy reads the request itself
                headers |= proxy_headers
        # A proxy resolves names itself, in its own network: there is no address to judge.
        session = self._open_guarded() if is_guarded and proxy is None else self._open_session()
        return partial(
            session.request,
            method,
            url,
            headers=headers,
            allow_redirects=False,
            proxy=proxy.url if proxy else None,
            proxy_headers=proxy_headers,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No limit: one stands behind each client that reads slowly, and nobody may wait for that one.
            # Whoever asks for much at once bounds it.
            self._session = self._make_session(aiohttp.TCPConnector(limit=0, ssl=tls_context()))
        return self._session

    def _open_guarded(self) -> aiohttp.ClientSession:
        if self._guarded is None:
            guard = guard_sockets(self._is_public)
            self._guarded = self._make_session(
                aiohttp.TCPConnector(limit=0, ssl=tls_context(), socket_factory=guard)
            )
        return self._guarded

    def _make_session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        timeout = self._timeout(self._stall_seconds)
        return open_session(connector, timeout=timeout, request_class=_TellingRequest)

    def _timeout(self, read_seconds: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None,
            connect=_CONNECT_SECONDS_IN_ALL,
            sock_connect=_CONNECT_SECONDS,
            sock_read=read_seconds,
        )


class _TellingRequest(GuardedRequest):
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

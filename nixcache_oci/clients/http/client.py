"""The HTTP client of all clients here: a request gets an answer, or raises HttpError.

Redirects are followed here and not by aiohttp. Each client's ``Rules`` say where a request may go and what it
may carry there. Once an answer came from a public address, all that it leads to must be public as well, so
that an outside server cannot reach inside through us. There is no limit on total time, for a body may be
large; there are limits on the wait for a head, on stalls, and on a minimum rate.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp
from yarl import URL

from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.forward_proxy import find_proxy
from nixcache_oci.clients.http.fresh import Freshness, send_fresh
from nixcache_oci.clients.http.public_address import (
    IsPublic,
    guard_sockets,
    is_known_private,
    is_public,
    open_any_socket,
    spells_private,
)
from nixcache_oci.clients.http.reply import Answer, Reply, Timeouts
from nixcache_oci.clients.http.request_body import Body, UploadProgress
from nixcache_oci.clients.http.session import StreamedAnswer, on_connection, open_session, tls_context
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.http.url import is_same_origin

if TYPE_CHECKING:
    from nixcache_oci.clients.http.curl_transport import CurlTransport

CONNECT_SECONDS: Final = 10.0
"""For TCP and TLS to one address."""

CONNECT_SECONDS_IN_ALL: Final = 30.0
"""For all addresses of a name in turn, its look-up and an HTTP proxy included."""

IDLE_SECONDS: Final = 15.0
"""How long an unused connection is kept."""

MOST_REDIRECTS: Final = 5

# Where small answers come over connections that requests share. HTTP/2 is for TLS only, and for HTTP/1.1
# libcurl is no faster.
_SHARING_SCHEMES: frozenset[str] = frozenset({"https"})
_DRAINED_BYTES: Final = 64 * 1024


class Rules(Protocol):
    """Where a client's requests may go, and what they may carry there."""

    async def enter(self, url: URL, *, is_elsewhere: bool, is_guarded: bool) -> str | None:
        """Return the Authorization for the next URL of a request, or None; HttpError if it may not go there.

        Args:
            url: where it goes.
            is_elsewhere: whether it ever left the origin that it was made for.
            is_guarded: whether it may go to public addresses only.
        """

    def follow(self, method: str, status: int, url: URL, location: str) -> URL | None:
        """Return where an answer redirects to; None if it is no redirect, HttpError if it is refused."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request."""

    method: str
    url: URL  # encoded as it is to be sent
    headers: Mapping[str, str] = field(default_factory=dict)  # without Authorization
    body: Body | None = None
    follows: bool = True  # whether redirects are followed
    is_elsewhere: bool = False  # whether the intended server sent us to this URL, of another one
    # Whether it may go to public addresses only, because a public server named the URL.
    is_guarded: bool = False
    # The most that the body may have, of a small answer without one of its own: others may share its
    # connection. None if it is streamed.
    most_bytes: int | None = None


class HttpClient:
    """Connections to servers and their redirect targets; opened in the loop that first uses them.

    ``limits`` are for requests without their own; for connections, see ``CONNECT_SECONDS`` and
    ``IDLE_SECONDS``.
    """

    def __init__(
        self,
        limits: Timeouts,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        connect_seconds_in_all: float = CONNECT_SECONDS_IN_ALL,
        idle_seconds: float = IDLE_SECONDS,
        is_public: IsPublic = is_public,
    ) -> None:
        self._limits = limits
        self._connect_seconds = connect_seconds
        self._connect_seconds_in_all = connect_seconds_in_all
        self._idle_seconds = idle_seconds
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=connect_seconds_in_all, sock_connect=connect_seconds
        )
        self._is_public = is_public
        self._freshness = Freshness()
        # By whether they lead to public addresses only.
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._curls: dict[bool, CurlTransport] = {}

    async def close(self) -> None:
        """Close all connections."""
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()
        while self._curls:
            self._curls.popitem()[1].close()

    async def send(
        self,
        request: HttpRequest,
        rules: Rules,
        *,
        limits: Timeouts | None = None,
        on_connect: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Send a request and follow its redirects; an upload is limited by its progress.

        ``on_connect`` is called when a server was reached. Raises HttpError if no answer came, or a redirect
        is refused.
        """
        limits = limits or self._limits
        limit = asyncio.timeout(limits.head if request.body is None else None)
        try:
            with translated():
                async with limit:
                    return await self._follow(request, rules, limits, on_connect)
        except HttpError:
            if limit.expired():
                reason = f"no answer within {limits.head:.0f} s: the connection stalled or was too slow"
                raise HttpError(Failure(None), reason, is_connection=True) from None
            raise

    async def connect(self, origin: URL, is_guarded: bool) -> aiohttp.connector.Connection | None:
        """Open a connection for the next request to an origin; None behind an HTTP proxy."""
        session = self._session(is_guarded=is_guarded)
        if session.connector is None or find_proxy(origin) is not None:
            return None
        request = aiohttp.ClientRequest("GET", origin, loop=asyncio.get_running_loop(), session=session)
        return await session.connector.connect(request, [], self._timeout)

    async def _follow(
        self, request: HttpRequest, rules: Rules, limits: Timeouts, on_connect: Callable[[], None]
    ) -> Reply:
        url, is_elsewhere, is_guarded = request.url, request.is_elsewhere, request.is_guarded
        for _ in range(MOST_REDIRECTS + 1):
            authorization = await rules.enter(url, is_elsewhere=is_elsewhere, is_guarded=is_guarded)
            if is_guarded and spells_private(url, self._is_public):
                raise HttpError.final(
                    f"refused to go to the private address {url.origin()},"
                    " which a server at a public one named"
                )
            headers = dict(request.headers)
            if authorization is not None:
                headers["Authorization"] = authorization
            answer = await self._send_once(request, url, headers, limits, on_connect, is_guarded=is_guarded)
            came_from_public = not is_known_private(answer.peer, url, self._is_public)
            reply = Reply(answer, limits, is_elsewhere=is_elsewhere, is_public=came_from_public)
            if not request.follows:
                return reply
            try:
                target = rules.follow(request.method, reply.status, url, reply.headers.get("Location", ""))
                if target is None:
                    return reply
                with suppress(HttpError):  # read only to keep the connection
                    await reply.read(_DRAINED_BYTES)
            except BaseException:
                reply.close()
                raise
            reply.close()
            # Stays set when it leads back: a foreign host may not point credentials at a path of its choice.
            is_elsewhere = is_elsewhere or not is_same_origin(target, request.url)
            is_guarded = is_guarded or came_from_public
            url = target
        raise HttpError.final(f"more than {MOST_REDIRECTS} redirects, the last one to {url.origin()}")

    async def _send_once(
        self,
        request: HttpRequest,
        url: URL,
        headers: dict[str, str],
        limits: Timeouts,
        on_connect: Callable[[], None],
        *,
        is_guarded: bool,
    ) -> Answer:
        proxy = find_proxy(url)
        if (
            request.most_bytes is not None
            and request.body is None
            and proxy is None
            and url.scheme in _SHARING_SCHEMES
        ):
            send_small = partial(
                self._curl(is_guarded=is_guarded).send,
                request.method,
                url,
                headers,
                most_bytes=request.most_bytes,
                first_seconds=limits.first,
                on_connect=on_connect,
            )
            return await send_fresh(self._freshness, send_small, again_seconds=limits.again)
        to_proxy = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else {}
        if url.scheme == "http":  # without a tunnel, the proxy reads the request itself
            headers |= to_proxy
        send = partial(
            # A proxy resolves names itself, in its own network: there is no address to check.
            self._session(is_guarded=is_guarded and proxy is None).request,
            request.method,
            url,
            headers=headers,
            allow_redirects=False,
            proxy=proxy.url if proxy else None,
            proxy_headers=to_proxy if url.scheme == "https" else None,
        )
        if request.body is None:
            token = on_connection.set(lambda _: on_connect())
            try:
                timeout = aiohttp.ClientTimeout(
                    total=None,
                    connect=self._timeout.connect,
                    sock_connect=self._timeout.sock_connect,
                    sock_read=limits.first,
                )
                response = await send_fresh(
                    self._freshness, partial(send, timeout=timeout), again_seconds=limits.again
                )
                return StreamedAnswer(response, limits.first)
            finally:
                on_connection.reset(token)
        headers["Content-Length"] = str(request.body.size)
        with closing(request.body.pieces()) as pieces, _aborting() as transports:
            progress = UploadProgress(request.body.size, limits.stall, transports)
            async with progress.limited():
                response = await send(data=progress.pass_on(pieces), timeout=self._timeout)
                return StreamedAnswer(response, limits.first, transports)

    def _session(self, *, is_guarded: bool) -> aiohttp.ClientSession:
        """Open a session; guarded ones are separate, as other idle connections may be private."""
        if is_guarded not in self._sessions:
            # No limit here: a connection may serve a slow reader, and others must not wait for it. Callers
            # bound their own concurrency.
            connector = aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=self._idle_seconds,
                ssl=tls_context(),
                socket_factory=guard_sockets(self._is_public) if is_guarded else None,
            )
            self._sessions[is_guarded] = open_session(connector)
        return self._sessions[is_guarded]

    def _curl(self, *, is_guarded: bool) -> "CurlTransport":
        """Open what sends requests for small answers; a process that sends none does not load libcurl."""
        from nixcache_oci.clients.http.curl_transport import CurlTransport  # noqa: PLC0415 -- see above

        if is_guarded not in self._curls:
            self._curls[is_guarded] = CurlTransport(
                self._freshness,
                connect_seconds=self._connect_seconds,
                connect_seconds_in_all=self._connect_seconds_in_all,
                idle_seconds=self._idle_seconds,
                open_socket=guard_sockets(self._is_public) if is_guarded else open_any_socket,
            )
        return self._curls[is_guarded]


@contextmanager
def _aborting() -> Iterator[list[asyncio.Transport]]:
    """Abort the connection of a failed upload, as closing would wait for the peer to read the rest.

    Yields the transports that the upload uses.
    """
    transports: list[asyncio.Transport] = []
    token = on_connection.set(transports.append)
    try:
        yield transports
    except BaseException:
        for transport in transports:
            transport.abort()
        raise
    finally:
        on_connection.reset(token)

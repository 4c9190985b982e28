"""Small answers, over connections that requests share: libcurl speaks HTTP/2 where a server offers it.

Everything that is no matter of one exchange stays in ``HttpClient``: redirects, credentials, and where a
request may go. What libcurl would take from the environment or a server by itself is off: proxies, netrc,
cookies, codings.

Names are looked up here: libcurl cannot be closed while it looks one up, and counts it as connecting.
Connections are in generations: a request that needs a connection newer than some time uses a generation that
began later, and an old one ends with its last request.

Sources: curl_easy_setopt(3), CURLOPT_RESOLVE(3).
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import pycurl
from yarl import URL

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.http.curl_answer import CurlAnswer
from nixcache_oci.clients.http.curl_generation import Generation
from nixcache_oci.clients.http.fresh import Exchange, Freshness, exchange_now
from nixcache_oci.clients.http.public_address import AddressInfo, literal_address
from nixcache_oci.clients.http.session import HEADERS, log_request, trusted_certificates
from nixcache_oci.clients.http.translation import CurlCode, TransferError

_NAME_SECONDS: Final = 60.0  # as libcurl remembers addresses
_MOST_NAMES: Final = 256
_MOST_HOSTS: Final = 256  # that are known to speak HTTP/1.1 only
_DISALLOW_USERNAME_IN_URL: Final = 275  # which pycurl has no name for

OpenSocket = Callable[[AddressInfo], socket.socket]


class _Address(Protocol):
    family: int
    socktype: int
    protocol: int
    addr: tuple[Any, ...]


class CurlTransport:
    """Sends requests without a body; ``open_socket`` may refuse addresses. Belongs to one event loop."""

    def __init__(
        self,
        freshness: Freshness,
        *,
        connect_seconds: float,
        connect_seconds_in_all: float,
        idle_seconds: float,
        open_socket: OpenSocket,
    ) -> None:
        self._freshness = freshness
        self._connect_seconds = connect_seconds
        self._connect_seconds_in_all = connect_seconds_in_all
        self._idle_seconds = idle_seconds
        self._open_socket = open_socket
        self._certificates = trusted_certificates()
        self._names = _Names()
        self._without_http2: BoundedCache[tuple[str, int], bool] = BoundedCache(_MOST_HOSTS)
        self._generations: list[Generation] = []  # the oldest first
        self._idle: asyncio.TimerHandle | None = None
        self._is_closed = False

    def close(self) -> None:
        """Close all connections, for good."""
        self._is_closed = True
        self._close_all()

    def _close_all(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        while self._generations:
            self._generations.pop().close()

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        most_bytes: int,
        first_seconds: float | None,
        on_connect: Callable[[], None],
    ) -> CurlAnswer:
        """Make one try of ``send_fresh``, and wait for the head of the answer.

        The body fails once it has more than ``most_bytes``.
        """
        exchange = exchange_now.get()
        if exchange is None:
            raise AssertionError("not a try of send_fresh")
        place = url.raw_host or "", url.port or 0
        make_answer = partial(CurlAnswer, *place, most_bytes, first_seconds, self._tidy)
        answer = make_answer()
        try:
            await self._exchange(answer, place, method, url, headers, exchange, on_connect)
        except TransferError:
            # libcurl itself sends again what an idle connection of HTTP/1.1 did not take.
            if self._is_closed or not answer.was_dropped:
                raise
            exchange.opened_after = exchange.sent_at
            answer = make_answer()
            await self._exchange(answer, place, method, url, headers, exchange, on_connect)
        if answer.is_http2:
            self._without_http2.forget(place)
        else:
            self._without_http2.put(place, value=True)
        log_request(method, url, answer.status)
        return answer

    async def _exchange(
        self,
        answer: CurlAnswer,
        place: tuple[str, int],
        method: str,
        url: URL,
        headers: Mapping[str, str],
        exchange: Exchange,
        on_connect: Callable[[], None],
    ) -> None:
        """Send a request, and wait for the head of its answer, which is closed if none comes."""
        try:
            async with asyncio.timeout(self._connect_seconds_in_all) as limit:
                addresses = await self._names.look_up(*place)
                limit.reschedule(None)  # until a connection is made, which it may leave to others
                handle = self._prepare(method, url, headers, addresses)
                handle.setopt(pycurl.OPENSOCKETFUNCTION, partial(self._open, answer, limit))
                generation = self._generation(exchange, answer)
                # HTTP/2 is for TLS only.
                may_share = url.scheme == "https" and place not in self._without_http2
                scouting = await generation.await_scout(*place) if may_share else None
                answer.begin(generation, handle, exchange, limit, on_connect, scouting)
                await answer.head()
        except BaseException as error:
            answer.close()
            if isinstance(error, TimeoutError) and not exchange.sent.done():
                raise TransferError(CurlCode.OPERATION_TIMEDOUT, *place) from None
            raise

    def _prepare(
        self, method: str, url: URL, headers: Mapping[str, str], addresses: str | None
    ) -> pycurl.Curl:
        handle = pycurl.Curl()
        set_option = handle.setopt
        set_option(pycurl.URL, str(url.origin()))
        set_option(pycurl.REQUEST_TARGET, url.raw_path_qs.encode())
        set_option(pycurl.PATH_AS_IS, 1)
        set_option(_DISALLOW_USERNAME_IN_URL, 1)
        set_option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        if method == "HEAD":
            set_option(pycurl.NOBODY, 1)
        elif method != "GET":
            raise ValueError(method)
        set_option(pycurl.HTTPHEADER, [_render(name, text) for name, text in {**HEADERS, **headers}.items()])
        set_option(pycurl.HTTP_CONTENT_DECODING, 0)
        set_option(pycurl.PROXY, "")
        set_option(pycurl.NOSIGNAL, 1)
        set_option(pycurl.MAXAGE_CONN, max(1, int(self._idle_seconds)))
        if addresses is not None:
            set_option(pycurl.RESOLVE, [addresses])
        set_option(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        set_option(pycurl.CAINFO, self._certificates[0])
        set_option(pycurl.CAPATH, self._certificates[1])
        return handle

    def _open(
        self, answer: CurlAnswer, limit: asyncio.Timeout, _purpose: int, address: _Address
    ) -> socket.socket | int:
        """Open a socket for libcurl, which connects it."""
        loop = asyncio.get_running_loop()
        if not answer.is_over_new:
            answer.is_over_new = True
            answer.connect_by = loop.time() + self._connect_seconds_in_all
        # libcurl's own limit would count the wait for a connection that others use.
        if not limit.expired():
            limit.reschedule(min(loop.time() + self._connect_seconds, answer.connect_by))
        try:
            opened = self._open_socket((address.family, address.socktype, address.protocol, "", address.addr))
        except OSError as error:
            answer.refusal = error
            return int(pycurl.SOCKET_BAD)
        answer.refusal = None  # of an address before
        loop.call_soon(opened.close)  # pycurl makes a duplicate
        return opened

    def _generation(self, exchange: Exchange, answer: CurlAnswer) -> Generation:
        """Find the oldest generation that a request may use; TransferError if all was closed meanwhile."""
        if self._is_closed:
            raise answer.never_sent()
        oldest = self._freshness.oldest_for(exchange)
        for generation in self._generations:
            if generation.begun_at >= oldest:
                return generation
        self._generations.append(Generation())
        return self._generations[-1]

    def _tidy(self) -> None:
        """Close the generations that are no longer used, or all of them after a while without requests."""
        current = next(
            (one for one in self._generations if one.begun_at >= self._freshness.trusted_since), None
        )
        for one in [one for one in self._generations if one is not current and not one.is_busy]:
            self._generations.remove(one)
            one.close()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if current is not None and not current.is_busy:
            self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._close_idle)

    def _close_idle(self) -> None:
        if not any(one.is_busy for one in self._generations):
            self._close_all()


def _render(name: str, text: str) -> bytes:
    if set(text) & {"\r", "\n", "\0"}:
        raise ValueError(f"control characters in the header {name}")
    return f"{name}: {text}".encode() if text else f"{name};".encode()


class _Names:
    """Addresses of names; those who ask for the same one meanwhile share a look-up."""

    def __init__(self) -> None:
        self._known: BoundedCache[tuple[str, int], tuple[float, asyncio.Task[str]]] = BoundedCache(
            _MOST_NAMES
        )

    async def look_up(self, host: str, port: int) -> str | None:
        """Return a name with its addresses as CURLOPT_RESOLVE takes them; None for an address."""
        if literal_address(host) is not None:
            return None
        known = self._known.get((host, port))
        if known is None or (known[1].done() and (known[0] < time.monotonic() or known[1].exception())):
            known = time.monotonic() + _NAME_SECONDS, asyncio.create_task(_resolve(host, port))
            known[1].add_done_callback(_retrieve)
            self._known.put((host, port), known)
        await asyncio.wait([known[1]])
        try:
            return known[1].result()
        except socket.gaierror as error:
            raise TransferError(CurlCode.COULDNT_RESOLVE_HOST, host, port, os_error=error) from None


def _retrieve(look_up: asyncio.Task[str]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not look_up.cancelled():
        look_up.exception()


async def _resolve(host: str, port: int) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return f"+{host}:{port}:{','.join(dict.fromkeys(str(info[4][0]) for info in found))}"
